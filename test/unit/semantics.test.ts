import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../../../', import.meta.url))

t.test('every promise of SEMANTICS.md is named in the title of a test', async t => {
  const promises = [...readFileSync(join(root, 'SEMANTICS.md'), 'utf8').matchAll(/^- \*\*(S\d+)\*\*/gm)].map(
    match => match[1]!,
  )
  t.ok(promises.length > 15)
  const sources = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .filter(path => path.endsWith('.ts') && path !== join('unit', 'semantics.test.ts'))
    .map(path => readFileSync(join(root, 'test', path), 'utf8'))
  const named = new Set(
    sources.flatMap(text => [...text.matchAll(/\((S\d+(?:, S\d+)*)\)/g)].flatMap(match => match[1]!.split(', '))),
  )
  for (const promise of promises) t.ok(named.has(promise), `${promise} has a test`)
  for (const name of named) t.ok(promises.includes(name), `${name}, which a test names, is a promise`)
})

t.test('every line of SECURITY.md names a test that there is', async t => {
  const lines = readFileSync(join(root, 'SECURITY.md'), 'utf8')
    .split('\n')
    .filter(line => line.startsWith('| ') && line.includes('test.ts`'))
  t.ok(lines.length > 30)
  for (const line of lines) {
    const [, path = '', title = ''] = /`(test\/[\w/.-]+\.test\.ts)`: (.+) \|$/.exec(line) ?? []
    const source = existsSync(join(root, path)) && path !== '' ? readFileSync(join(root, path), 'utf8') : ''
    t.ok(title !== '' && source.includes(title), `${path}: ${title}`)
  }
})

t.test('every door of SECURITY.md has a test', async t => {
  const text = readFileSync(join(root, 'SECURITY.md'), 'utf8')
  for (const [table = ''] of text.matchAll(/^\|[^\n]* \| test \|\n(?:\|.*\n)+/gm)) {
    for (const row of table.trimEnd().split('\n').slice(2)) t.match(row, /`test\/.+\.test\.ts`: /, row.slice(0, 80))
  }
})
