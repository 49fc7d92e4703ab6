/** The kit. Views import from here. */
export * from './basic';
export * from './data';
export * from './dialog';
export * from './list';
export * from './steps';
export * from './meter';
