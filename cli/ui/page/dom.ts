/** An element with children; texts are never markup. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = '',
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag)
  made.className = className
  made.append(...children)
  return made
}

/** The square that stands for a curve. */
export function swatch(color: string): HTMLElement {
  const made = element('i', 'swatch')
  made.style.background = `var(${color})`
  return made
}

/** The value of a custom property of the style sheet, in the reader's light or dark setting. */
export const cssColor = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim()

export const darkSetting = matchMedia('(prefers-color-scheme: dark)')

export const integer = (value: number): string => Math.round(value).toLocaleString('en')
export const percent = (share: number, digits = 1): string => `${(share * 100).toFixed(digits)} %`

export const lossUnit = 'nats per character'
export const lossText = (loss: number): string => loss.toFixed(3)
export const rateText = (rate: number): string =>
  rate === 0 || rate >= 1e-3 ? String(Number(rate.toPrecision(3))) : rate.toExponential(2)
