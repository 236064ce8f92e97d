import { readdirSync, readFileSync } from 'node:fs'
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
