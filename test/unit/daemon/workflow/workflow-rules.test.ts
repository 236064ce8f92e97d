import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { isDeepStrictEqual } from 'node:util'
import t from 'tap'
import { runConfined } from '../../../../daemon/confined/confined.js'
import { parsePyYaml } from '../../../../daemon/workflow/pyyaml.js'
import applyRules, { type RulesTask } from '../../../../daemon/workflow/workflow-rules.js'
import { Bobbin } from '../../../support/cli.js'
import { testFolder } from '../../../support/daemon.js'
import { plainYaml, SCHEMA_TABLE, titleOf, YAML_TABLE } from '../../../support/schema-table.js'

t.setTimeout(300_000)

const RULES = new URL('../../../../daemon/workflow/workflow-rules.js', import.meta.url)

function work(task: RulesTask, deadlineMs = 60_000) {
  return runConfined(RULES, task, { what: 'apply them', deadlineMs, heapMib: 128 })
}

function check(schema: unknown, meta: unknown) {
  const text = typeof schema === 'string' ? schema : JSON.stringify(schema)
  return { kind: 'check', name: 'a/b', metadata: { url: 's3://x/y', text }, userMeta: JSON.stringify(meta) } as const
}

t.test('rules of a registry that take for ever are ended (S83)', async t => {
  const text = `${'a'.repeat(60)}!`
  const objects = Array.from({ length: 20_000 }, (_, i) => ({ a: { b: { c: i } } }))
  for (const [what, task] of [
    ['the pattern of a name', { kind: 'check', name: text, handlePattern: '^(a+)+$' }],
    ['a pattern', check({ properties: { x: { pattern: '^(a+)+$' } } }, { x: text })],
    ['patterns of properties', check({ patternProperties: { '^(a|a)+$': { type: 'number' } } }, { [text]: 1 })],
    ['items that are compared with each other', check({ properties: { x: { uniqueItems: true } } }, { x: objects })],
  ] as [string, RulesTask][])
    await t.rejects(work(task, 1500), { code: 'INVALID_ARGUMENT', message: /longer than 1.5 s/ }, what)
})

t.test('rules that multiply, nest or pose as code are refused or are data (S83)', async t => {
  const bomb = ['a: &a [x, x, x, x, x, x, x, x, x]']
  for (let i = 1; i < 10; i++) {
    const name = String.fromCharCode(97 + i)
    const before = `*${String.fromCharCode(96 + i)}`
    bomb.push(`${name}: &${name} [${Array(9).fill(before).join(', ')}]`)
  }
  await t.rejects(work({ kind: 'config', text: bomb.join('\n') }), { code: 'INVALID_ARGUMENT', message: /alias/i })
  await t.rejects(work({ kind: 'config', text: '['.repeat(200_000) }), { code: 'INVALID_ARGUMENT' })
  await t.rejects(work(check(`${'{"not":'.repeat(50_000)}true${'}'.repeat(50_000)}`, {})), {
    code: 'INVALID_ARGUMENT',
    message: /cannot be used/,
  })
  const code = "']; process.exit(7); //"
  const evil = {
    properties: { [code]: { const: code, pattern: '\\n"`$' }, '"+process.exit(7)+"': true, '${process.exit(7)}': true },
    required: [code],
    $comment: code,
    $id: `https://example.org/${encodeURIComponent(code)}`,
    title: '*/process.exit(7)/*',
  }
  await t.rejects(work(check(evil, {})), { code: 'INVALID_ARGUMENT', message: /required property/ })
  await t.rejects(work(check({ $ref: '#/definitions/x' }, {})), { message: /does not support \$ref/ })
  await t.rejects(work(check({ properties: { a: { const: { $data: '1/b' } } } }, { a: 1, b: 1 })), {
    message: /do(es)? not fit/,
  })
})

t.test('rules of people are kept as they were (S83)', async t => {
  const folder = testFolder(t)
  const registry = join(folder, 'registry')
  const write = (path: string, text: string) => {
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, text)
  }
  const url = (name: string) => String(pathToFileURL(join(registry, name)))
  const config = `version: "1"
default_workflow: usual
workflows:
  usual: { name: usual, is_message_required: true, metadata_schema: person, handle_pattern: "^(?!old).+/" }
  small: { name: small, entries_schema: small }
schemas:
  person: { url: "${url('person.json')}" }
  small: { url: "${url('small.json')}" }
`
  write(join(registry, '.quilt/workflows/config.yml'), config)
  write(
    join(registry, 'person.json'),
    JSON.stringify({ required: ['owner'], properties: { owner: { pattern: '^m(?=e)' } } }),
  )
  write(join(registry, 'small.json'), JSON.stringify({ maxItems: 1 }))
  const data = join(folder, 'data')
  write(join(data, 'a'), 'a')
  write(join(data, 'b'), 'b')
  const cli = new Bobbin(join(folder, 'cache'))
  const push = (...args: string[]) => cli.try('push', data, `${registry}/new/pkg`, ...args)
  for (const [words, args] of [
    [/the metadata does not fit its schema.*owner/, ['-m', 'm', '--meta', '{}']],
    [/the metadata does not fit its schema: \/owner must match pattern/, ['-m', 'm', '--meta', '{"owner":"my"}']],
    [/a message is required/, ['-m', '', '--meta', '{"owner":"me"}']],
    [/there is no workflow "other", but usual, small/, ['-m', 'm', '--workflow', 'other']],
    [/the entries do not fit its schema.*1 items/, ['-m', 'm', '--workflow', 'small']],
  ] as const) {
    const { status, stderr } = await push(...args)
    t.equal(status, 2, stderr)
    t.match(stderr, words)
  }
  const old = await cli.try('push', data, `${registry}/old/pkg`, '-m', 'm', '--meta', '{"owner":"me"}')
  t.match(old, { status: 2, stderr: /name does not fit the pattern/ })
  const pushed = await push('-m', 'm', '--meta', '{"owner":"me"}')
  t.equal(pushed.status, 0, pushed.stderr)
  write(join(registry, 'person.json'), `${' '.repeat(2 ** 20)}{}`)
  t.match(await push('-m', 'm', '--meta', '{"owner":"me"}'), {
    status: 2,
    stderr: /person.json has more than 1.00 MiB/,
  })
})

t.test('the schema sees what is written, and numbers as Python has them (S143)', async t => {
  const judge = (schema: unknown, userMeta: string) =>
    work({ kind: 'check', name: 'a/b', metadata: { url: 's3://x/y', text: JSON.stringify(schema) }, userMeta })
  await judge({ type: 'null' }, 'null')
  await t.rejects(
    judge({ type: 'object' }, 'null'),
    { code: 'INVALID_ARGUMENT' },
    'null, which push writes without --meta',
  )
  await judge({ properties: { a: { type: 'number' } } }, '{"a":NaN}')
  await judge({ properties: { a: { minimum: 5 } } }, '{"a":Infinity}')
  await t.rejects(judge({ properties: { a: { maximum: 5 } } }, '{"a":Infinity}'), { code: 'INVALID_ARGUMENT' })
  const bounds = { minimum: 5, maximum: 5, exclusiveMinimum: 5, exclusiveMaximum: 5 }
  await judge({ properties: { a: bounds } }, '{"a":NaN}')
})

t.test('schemas are judged as Python judges them (S148)', async t => {
  for (const [text, userMeta, fits] of SCHEMA_TABLE) {
    const task: RulesTask = { kind: 'check', name: 'a/b', metadata: { url: 's3://x/y', text }, userMeta }
    const what = `${text} of ${userMeta}`
    if (fits) t.doesNotThrow(() => applyRules(task), what)
    else
      t.throws(
        () => applyRules(task),
        { code: 'INVALID_ARGUMENT', message: fits === undefined ? /cannot be used/ : /does not fit/ },
        what,
      )
  }
  const entries = { url: 's3://x/y', text: '{"items":{"properties":{"meta":{"maximum":9007199254740992}}}}' }
  const values = [{ logical_key: 'a', size: 1, meta: 9007199254740993n }]
  await t.rejects(work({ kind: 'entries', entries, values }), {
    message: /do not fit its schema: \/0\/meta must be <= /,
  })
})

t.test('config.yml is read as PyYAML reads it, or refused (S149)', async t => {
  for (const [text, json] of YAML_TABLE) {
    const what = titleOf(text)
    if (json === undefined || json === 'refused') t.throws(() => parsePyYaml(text), what)
    else t.ok(isDeepStrictEqual(plainYaml(parsePyYaml(text)), JSON.parse(json)), what)
  }
  const config = (version: string) =>
    work({ kind: 'config', text: `version: ${version}\nworkflows: {n: {name: y}}\nworkflows: {y: {name: n}}` })
  t.match(await config('"1"'), { workflows: { y: { name: 'n' } } })
  await t.rejects(config('!v 1'), { code: 'INVALID_ARGUMENT', message: /config.yml is not YAML.*tag/i })
  await t.rejects(config('2001-01-01'), { code: 'INVALID_ARGUMENT', message: /\/version/ })
})

t.test('rules that are not UTF-8 are refused, as Python refuses to decode them (S149)', async t => {
  const folder = testFolder(t)
  const config = join(folder, 'registry/.quilt/workflows/config.yml')
  mkdirSync(dirname(config), { recursive: true })
  mkdirSync(join(folder, 'data'))
  const cli = new Bobbin(join(folder, 'cache'))
  for (const [what, bytes] of [
    ['UTF-16', Buffer.from('\ufeffversion: "1"\nworkflows: {a: {name: a}}', 'utf16le')],
    ['Latin-1', Buffer.from('version: "1"\nworkflows: {a: {name: \xe9}}', 'latin1')],
  ] as const) {
    writeFileSync(config, bytes)
    const pushed = await cli.try('push', join(folder, 'data'), `${join(folder, 'registry')}/a/b`, '--workflow', 'a')
    t.match(pushed, { status: 2, stderr: /config.yml is not UTF-8/ }, what)
  }
})
