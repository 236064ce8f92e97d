/**
 * The few shapes that the pictures are made of, as SVG text.
 *
 * GitHub shows a picture on a white or on a nearly black page, as its reader has chosen, so each picture is drawn
 * twice, and `<picture>` in the README takes the one that fits. Backgrounds stay transparent. The colours are
 * GitHub's own, and every text has a contrast of at least 4.5 against its page (a test computes it).
 */

export const themes = {
  light: {
    page: '#ffffff',
    ink: '#1f2328',
    quiet: '#59636e',
    line: '#818b98',
    card: '#f6f8fa',
    ours: '#0969da',
    peer: '#afb8c1',
  },
  dark: {
    page: '#0d1117',
    ink: '#f0f6fc',
    quiet: '#9198a1',
    line: '#656c76',
    card: '#151b23',
    ours: '#4493f8',
    peer: '#5b636d',
  },
}

const escaped = text => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')

export function text(x, y, words, { fill, size = 13, weight = 400, anchor = 'start', isCode = false }) {
  const family = isCode ? ' font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"' : ''
  return `<text x="${x}" y="${y}" fill="${fill}" font-size="${size}" font-weight="${weight}" text-anchor="${anchor}"${family}>${escaped(words)}</text>`
}

export function box(x, y, width, height, { fill, stroke = 'none', dash = '', radius = 8 }) {
  const dashes = dash === '' ? '' : ` stroke-dasharray="${dash}"`
  return `<rect x="${x}" y="${y}" width="${width}" height="${height}" rx="${radius}" fill="${fill}" stroke="${stroke}"${dashes}/>`
}

/** A line along the points, with a head at its end. */
export function arrow(points, stroke) {
  const [[x1, y1], [x2, y2]] = points.slice(-2)
  const angle = Math.atan2(y2 - y1, x2 - x1)
  const corner = turn => `${round(x2 - 9 * Math.cos(angle + turn))},${round(y2 - 9 * Math.sin(angle + turn))}`
  const head = `<polygon points="${x2},${y2} ${corner(0.45)} ${corner(-0.45)}" fill="${stroke}"/>`
  return `<polyline points="${points.map(point => point.join(',')).join(' ')}" fill="none" stroke="${stroke}" stroke-width="1.5"/>${head}`
}

export function svg(width, height, title, shapes) {
  const open = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img"`
  const family = 'font-family="-apple-system, BlinkMacSystemFont, Segoe UI, Helvetica, Arial, sans-serif"'
  return `${open} ${family}>\n<title>${escaped(title)}</title>\n${shapes.join('\n')}\n</svg>\n`
}

const round = value => Math.round(value * 10) / 10
