/** The papers that name tests: every promise has a test in whose title it stands, and every door one that tries it. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'
import { runProgram } from '../support/cli.js'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const NUMBERS = /\((S\d+(?:, S\d+)*)\)/g

const promises = [...readFileSync(join(root, 'SEMANTICS.md'), 'utf8').matchAll(/^- \*\*(S\d+)\*\*/gm)].map(
  match => match[1]!,
)

function numbersIn(text: string): string[] {
  return [...text.matchAll(NUMBERS)].flatMap(match => match[1]!.split(', '))
}

/** The texts of a file of tests that may be titles: neither comments nor what an assertion of `t` says. */
function titlesIn(source: string): string[] {
  const titles: string[] = []
  const visit = (node: ts.Node): void => {
    if (ts.isStringLiteralLike(node) || ts.isTemplateExpression(node)) titles.push(node.getText())
    else if (isAssertion(node)) visit(node.expression)
    else ts.forEachChild(node, visit)
  }
  visit(ts.createSourceFile('test.ts', source, ts.ScriptTarget.Latest, true))
  return titles
}

function isAssertion(node: ts.Node): node is ts.CallExpression {
  if (!ts.isCallExpression(node) || !ts.isPropertyAccessExpression(node.expression)) return false
  const { expression, name } = node.expression
  return expression.getText() === 't' && name.text !== 'test'
}

t.test('every promise of SEMANTICS.md is named in the title of a test', async t => {
  t.ok(promises.length > 15)
  const sources = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .filter(path => path.endsWith('.ts') && path !== join('unit', 'semantics.test.ts'))
    .map(path => readFileSync(join(root, 'test', path), 'utf8'))
    .filter(text => numbersIn(text).length > 0)
  const named = new Set(sources.flatMap(titlesIn).flatMap(numbersIn))
  for (const promise of promises) t.ok(named.has(promise), `${promise} has a test`)
  for (const name of named) t.ok(promises.includes(name), `${name}, which a test names, is a promise`)
})

t.test('a number in a comment, or in what an assertion says, is not in a title', async t => {
  const source = `/** (S1) */ t.test('two (S2)', async t => { // (S3)
    t.ok(true, 'four (S4)'); await t.test(\`\${five}: (S5, S6)\`, async t => t.pass('(S7)')) })
    const TITLES = { eight: 'eight (S8)' }`
  t.same(titlesIn(source).flatMap(numbersIn), ['S2', 'S5', 'S6', 'S8'])
})

t.test('CI counts a promise as shown when a test with its number in the title ran', async t => {
  const [ran, , skipped, late] = promises as [string, string, string, string]
  const program = `import t from 'tap'
    await t.test('a test', async t => { await t.test('with # in it (${ran}, S0)', async t => t.pass('(${late})')) })
    await t.test('skipped (${skipped})', { skip: 'a reason' }, async t => t.fail())
    await t.test('skipped late (${skipped})', async t => t.plan(0, 'a reason'))`
  const log = join(t.testdir(), 'log')
  const run = (...args: string[]) => runProgram(process.execPath, args)
  writeFileSync(log, (await run('--input-type=module', '-e', program)).stdout)
  const { status, stdout } = await run(join(root, '.ci/promises.mjs'), log)
  t.equal(status, 1)
  const missing = stdout.split('\n').map(line => line.split(' ')[0])
  t.same(
    missing.slice(0, -1),
    promises.filter(promise => promise !== ran),
  )

  const all = promises.map(promise => `    ok 1 - ${promise} (${promise}) # time=1.5ms\n`)
  writeFileSync(log, all.join(''))
  t.match(await run(join(root, '.ci/promises.mjs'), log), { status: 0, stdout: '' })
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
