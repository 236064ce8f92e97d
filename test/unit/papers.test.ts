/** The papers hold together: links, paths, pictures, the index of decisions, the reasons of dependencies. */
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const NOT_OURS = new Set(['.git', '.parts', '.tap', 'node_modules', 'dist', 'build', 'sample', 'fixtures'])

/** Every file of the repository, by its path from the root. */
const files = filesBelow('')
const papers = files.filter(path => path.endsWith('.md'))

t.test('every relative link of the papers leads to a file, and every anchor to a heading', async t => {
  let count = 0
  for (const paper of papers) {
    for (const link of linksOf(readFileSync(join(root, paper), 'utf8'))) {
      if (/^[a-z]+:/.test(link)) continue
      count++
      const [path = '', anchor] = link.split('#')
      const target = path === '' ? join(root, paper) : resolve(root, dirname(paper), path)
      if (!existsSync(target)) t.fail(`${paper} links to ${link}, which is not there`)
      else if (anchor !== undefined && !anchorsOf(readFileSync(target, 'utf8')).includes(anchor))
        t.fail(`${paper} links to ${link}, and no heading there has this anchor`)
    }
  }
  t.ok(count > 100, `${count} links`)
})

t.test('every source file that the papers name is there', async t => {
  const named = papers.filter(path => !path.startsWith('bench/') && path !== 'CHANGELOG.md')
  let count = 0
  for (const paper of named) {
    const text = readFileSync(join(root, paper), 'utf8').replaceAll(/^```[\s\S]*?^```/gm, '')
    for (const [, name = ''] of text.matchAll(/`([\w./-]+\.(?:ts|mjs|cpp|hpp))`/g)) {
      count++
      if (!files.some(path => path === name || path.endsWith(`/${name}`))) t.fail(`${paper} names ${name}`)
    }
  }
  t.ok(count > 100, `${count} names`)
})

t.test('the pictures are what `npm run pictures` draws', async t => {
  const pictures = join(root, 'docs/pictures')
  const folder = t.testdir()
  execFileSync(process.execPath, [join(pictures, 'draw.mjs'), '--out', folder])
  const drawn = readdirSync(folder).sort()
  t.strictSame(
    drawn,
    readdirSync(pictures)
      .filter(name => name.endsWith('.svg'))
      .sort(),
  )
  for (const name of drawn)
    t.equal(readFileSync(join(pictures, name), 'utf8'), readFileSync(join(folder, name), 'utf8'))
})

t.test('every text of the pictures can be read on the page and on the boxes of its theme', async t => {
  const grounds = { light: ['#ffffff', '#f6f8fa'], dark: ['#0d1117', '#151b23'] }
  for (const [theme, backgrounds] of Object.entries(grounds)) {
    for (const name of ['overview', 'figures']) {
      const picture = readFileSync(join(root, `docs/pictures/${name}-${theme}.svg`), 'utf8')
      const inks = new Set([...picture.matchAll(/<text [^>]*fill="(#\w{6})"/g)].map(match => match[1]!))
      t.ok(inks.size > 0)
      for (const ink of inks)
        for (const background of backgrounds)
          t.ok(contrast(ink, background) >= 4.5, `${name}, ${theme}: ${ink} on ${background}`)
    }
  }
})

t.test('the index of decisions names each of them', async t => {
  const folder = join(root, 'docs/decisions')
  const index = readFileSync(join(folder, 'README.md'), 'utf8')
  const decided = readdirSync(folder)
    .filter(name => name !== 'README.md')
    .flatMap(name =>
      [...readFileSync(join(folder, name), 'utf8').matchAll(/^## (\d{4}-\d\d-\d\d) · (.+)$/gm)].map(
        ([heading, date = '', title = '']) => `| ${date} | [${title}](${name}#${slugOf(heading.slice(3))}) |`,
      ),
    )
  t.ok(decided.length > 80)
  t.strictSame(index.match(/^\| \d{4}.*$/gm)?.sort(), decided.sort())
})

t.test('every dependency has a reason', async t => {
  const { dependencies, devDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const reasons = readFileSync(join(root, 'docs/decisions/dependencies.md'), 'utf8')
  for (const name of Object.keys({ ...dependencies, ...devDependencies }))
    t.ok(name.startsWith('@types/') || reasons.includes(name), name)
})

function filesBelow(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true })
    .filter(({ name }) => !NOT_OURS.has(name))
    .flatMap(entry => {
      const path = join(folder, entry.name)
      return entry.isDirectory() ? filesBelow(path) : entry.isFile() ? [relative('', path)] : []
    })
}

/** Of Markdown and of the HTML in it; code is left out. */
function linksOf(markdown: string): string[] {
  const prose = markdown.replaceAll(/^```[\s\S]*?^```/gm, '').replaceAll(/`[^`\n]*`/g, '')
  return [...prose.matchAll(/\]\(([^()\s]+)\)|(?:src|srcset|href)="([^"]+)"/g)].map(([, link, html]) => link ?? html!)
}

function anchorsOf(markdown: string): string[] {
  const seen = new Map<string, number>()
  return [...markdown.replaceAll(/^```[\s\S]*?^```/gm, '').matchAll(/^#{1,6} (.+)$/gm)].map(([, heading = '']) => {
    const slug = slugOf(heading)
    const times = seen.get(slug) ?? 0
    seen.set(slug, times + 1)
    return times === 0 ? slug : `${slug}-${times}`
  })
}

/** The anchor that GitHub gives a heading. */
function slugOf(heading: string): string {
  return heading
    .replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1')
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\p{M}_\- ]/gu, '')
    .replaceAll(' ', '-')
}

/** WCAG's ratio of two colours, 1 to 21. */
function contrast(one: string, other: string): number {
  const [light = 0, dark = 0] = [luminance(one), luminance(other)].sort((a, b) => b - a)
  return (light + 0.05) / (dark + 0.05)
}

function luminance(colour: string): number {
  const [red = 0, green = 0, blue = 0] = [1, 3, 5]
    .map(at => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
    .map(value => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue
}
