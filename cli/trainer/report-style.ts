/** Style sheet of the report, light and dark. */
export const reportStyle = `
:root { --paper:#faf8f3; --card:#ffffff; --ink:#22272e; --muted:#6b7280; --edge:#e4e1da; --accent:#1b6f8f }
@media (prefers-color-scheme: dark) {
  :root { --paper:#12171d; --card:#1a2129; --ink:#e5e7eb; --muted:#9aa4b2; --edge:#2b333d; --accent:#63bfe0 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 960px; padding: 56px 24px 96px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Inter, 'DejaVu Sans', sans-serif }
h1 { font: 600 40px/1.15 Georgia, 'Iowan Old Style', 'Times New Roman', serif; margin: 4px 0 12px; letter-spacing: -.01em }
h2 { font: 600 22px/1.2 Georgia, 'Iowan Old Style', 'Times New Roman', serif; margin: 56px 0 12px }
h3 { display: flex; gap: 12px; font-size: 13px; font-weight: 600; margin: 0 0 6px; color: var(--muted) }
h3 span { color: var(--accent) }
header p { margin: 0; max-width: 62ch; color: var(--muted) }
header .eyebrow { color: var(--accent); font-weight: 600; font-size: 13px; letter-spacing: .04em }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin-top: 32px }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 14px 16px; display: grid; gap: 2px }
.card span, .card small { color: var(--muted); font-size: 12.5px; line-height: 1.35 }
.card strong { font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap }
figure { margin: 0; background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 20px 20px 16px }
figcaption, .caption { color: var(--muted); font-size: 14px; margin: 12px 0 0; max-width: 80ch }
article { border-left: 3px solid var(--edge); padding: 2px 0 2px 18px; margin: 22px 0 }
article:last-of-type { border-color: var(--accent) }
blockquote { margin: 0; font: 17px/1.6 Georgia, 'Iowan Old Style', 'Times New Roman', serif; white-space: pre-wrap; overflow-wrap: anywhere }
blockquote b { font-weight: 400; color: var(--muted) }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 400; color: var(--muted); padding: 4px 32px 4px 0 }
td { padding: 4px 0 }
@media (max-width: 720px) {
  figure { overflow-x: auto }
  figure .chart { width: 720px }
}
`
