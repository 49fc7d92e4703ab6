/** One value that changes, and who wants to know. React reads it by `useSyncExternalStore` (context.tsx). */
export class Store<T> {
  private readonly listeners = new Set<() => void>();

  constructor(private value: T) {}

  readonly get = (): T => this.value;

  set(value: T): void {
    if (Object.is(value, this.value)) {
      return;
    }
    this.value = value;
    this.listeners.forEach(listener => listener());
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    if (this.listeners.size === 1) {
      this.watched(true);
    }
    return () => {
      if (this.listeners.delete(listener) && this.listeners.size === 0) {
        this.watched(false);
      }
    };
  };

  /** Whether nobody looks. */
  get idle(): boolean {
    return this.listeners.size === 0;
  }

  /** Whether anybody looks; who owns something costly starts and stops it here. */
  protected watched(_by: boolean): void {
    // a plain value costs nothing
  }
}
