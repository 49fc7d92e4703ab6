/** Icons: drawn by us, 16 by 16, in the colour of the text. */
const icon = (inside: string): string =>
  `<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 16 16" fill="none" stroke="currentColor" class="jp-icon3-stroke" stroke-width="1.4" stroke-linecap="round" stroke-linejoin="round">${inside}</svg>`;

export const farmIcon = icon('<path d="M2 14V7l6-4.5L14 7v7M2 14h12M6.2 14v-4h3.6v4"/><circle cx="8" cy="7" r="1"/>');
export const agentIcon = icon('<rect x="3" y="5.5" width="10" height="7.5" rx="2"/><path d="M8 5.5V3M6 9h.01M10 9h.01M1.5 9v2M14.5 9v2"/>');
export const taskIcon = icon('<path d="M6 4h8M6 8h8M6 12h8M2 4l.8.8L4.3 3M2 8l.8.8L4.3 7M2 12l.8.8 1.5-1.8"/>');
export const runIcon = icon('<circle cx="4" cy="3.5" r="1.5"/><circle cx="4" cy="12.5" r="1.5"/><path d="M4 5v6M8 3.5h6M8 8h6M8 12.5h6"/>');
export const inboxIcon = icon('<path d="M2 9.5 4 3h8l2 6.500V13H2zM2 9.500h3.500c0 3 5 3 5 0H14"/>');
export const homeIcon = icon('<path d="M2.500 7.500 8 3l5.500 4.500V13h-11z"/>');
export const microserverIcon = icon('<rect x="2.500" y="2.500" width="11" height="4.500" rx="1"/><rect x="2.500" y="9" width="11" height="4.500" rx="1"/><path d="M5 4.750h.01M5 11.250h.01"/>');
export const budgetIcon = icon('<path d="M2.500 13.500h11M4 11V8M8 11V3M12 11V6"/>');
export const auditIcon = icon('<path d="M8 2l5 2v4c0 3-2.200 5-5 6-2.800-1-5-3-5-6V4zM5.800 8l1.600 1.600 3-3.200"/>');
export const peopleIcon = icon('<circle cx="6" cy="5.500" r="2.500"/><path d="M1.500 13.500c0-3 2-4.500 4.500-4.500s4.500 1.500 4.500 4.500M10.500 3.300a2.500 2.500 0 0 1 0 4.400M12 9.500c1.600.6 2.500 2 2.500 4"/>');
