/** Strangers' words on a terminal, verb by verb: a hostile package, a hostile record, hostile folders. */
import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { escapeControls, escapeJson, escapeMessage, escapeOutput } from '../../daemon/model/index.js'
import { AS_USERS_DO, Bobbin } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'
import { controlsIn, onTerminal } from '../support/pty.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(600_000)

/** It sets the title, clears the screen, does both with C1, turns the direction, deletes, and begins a line of its own. */
const HOSTILE = 'a\u001b]0;owned\u0007\u001b[2J\u009b2J\u009d0;x\u009c\u202egpj.\u2066b\u007f\r\nbobbin: all is well'
const SHOWN =
  'a\\u001b]0;owned\\u0007\\u001b[2J\\u009b2J\\u009d0;x\\u009c\\u202egpj.\\u2066b\\u007f\\u000d\\u000abobbin: all is well'

const folder = testFolder(t)
const registry = join(folder, 'registry')
const key = `dir/${HOSTILE}`
const meta = { note: HOSTILE }
const options = { message: HOSTILE, userMeta: meta }
const old = await writeRegistry(
  registry,
  'ns/pkg',
  { [key]: { bytes: 'old' }, 'b.txt': 'b' },
  { ...options, timestamp: 1 },
)
const now = await writeRegistry(registry, 'ns/pkg', { [key]: { bytes: 'new', meta }, [`${key}2`]: 'x' }, options)
const state = join(folder, 'state')
const cache = join(folder, 'cache')
const env = { BOBBIN_STATE: state, BOBBIN_CONFIG: undefined, HOME: folder, XDG_CONFIG_HOME: folder }
const cli = new Bobbin(cache, env)

/** A record that somebody else has sent, and one in this state folder. */
const runId = '01900000-0000-7000-8000-0123456789ab'
const facts = {
  version: 1,
  runId,
  bobbin: HOSTILE,
  pid: 1,
  host: 'elsewhere',
  engine: { name: 'host', version: HOSTILE },
  command: ['sh', '-c', HOSTILE],
  env: { MODE: HOSTILE },
  options: [],
  mounts: [
    {
      asked: HOSTILE,
      registry: `file://${registry}`,
      package: 'ns/pkg',
      topHash: now.topHash,
      manifestSha256: '0'.repeat(64),
      entries: 2,
      bytes: 4,
      mountpoint: `/${HOSTILE}`,
      target: `/${HOSTILE}`,
      mountedAt: '2026-01-01T00:00:00Z',
      cacheDir: '/cache',
    },
  ],
  loaderSocket: null,
  cwd: `/${HOSTILE}`,
  problems: [HOSTILE],
  outputs: [{ path: HOSTILE, size: 1, sha256: '0'.repeat(64) }],
  startedOn: '2026-01-01T00:00:00Z',
  endedOn: '2026-01-01T00:00:01Z',
  finishedOn: '2026-01-01T00:00:01Z',
  exitCode: 0,
  areLogsWhole: false,
}
const record = join(state, 'runs', runId)
mkdirSync(record, { recursive: true })
writeFileSync(join(record, 'run.json'), JSON.stringify(facts))
for (const name of ['statement.json', 'trace.json']) writeFileSync(join(record, name), '{}')
writeFileSync(join(record, 'reads.jsonl'), '')

const installed = join(folder, 'installed')
const pushed = join(folder, 'pushed')
mkdirSync(pushed)
writeFileSync(join(pushed, 'a.txt'), 'a')
symlinkSync('/nowhere', join(pushed, HOSTILE.replaceAll('/', '')))
const pkg = `${registry}/ns/pkg`
const oddCache = join(folder, `cache-${HOSTILE}`)
mkdirSync(oddCache)

async function shownBy(args: readonly string[], more: NodeJS.ProcessEnv = {}): Promise<string> {
  const whole = { ...process.env, AWS_EC2_METADATA_DISABLED: 'true', ...env, BOBBIN_CACHE: cache, ...more }
  return await onTerminal([...AS_USERS_DO, process.execPath, bobbinPath, ...args], whole)
}

t.test('no verb prints a control character of a stranger to a terminal (S78)', async t => {
  t.match(await shownBy(['install', pkg, installed]), /2 files/)
  renameSync(join(installed, key), join(installed, `${key}3`))
  const cases: readonly [string[], NodeJS.ProcessEnv?][] = [
    [['resolve', pkg]],
    [['resolve', pkg, '--json']],
    [['log', pkg]],
    [['log', pkg, '--json']],
    [['ls', pkg, '-R']],
    [['ls', pkg, '-R', '-l']],
    [['ls', pkg, '-R', '--json']],
    [['ls', pkg, 'dir']],
    [['ls', pkg, HOSTILE]],
    [['meta', pkg]],
    [['meta', pkg, key]],
    [['meta', pkg, HOSTILE]],
    [['cat', pkg, HOSTILE]],
    [['diff', `${pkg}@${old.topHash}`, pkg]],
    [['diff', `${pkg}@${old.topHash}`, pkg, '--json']],
    [['verify', pkg, installed]],
    [['verify', pkg, installed, '--json']],
    [['install', pkg, join(folder, 'x'), '--path', HOSTILE]],
    [['install', `${registry}/ns/${HOSTILE}`, join(folder, 'x')]],
    [['install', pkg, `/dev/null/${HOSTILE}`]],
    [['push', pushed, `${registry}/ns/pushed`, '-m', HOSTILE]],
    [['push', join(folder, HOSTILE), `${registry}/ns/pushed`, '-m', 'x']],
    [['filter', pkg, '--where', HOSTILE, '--push', `${registry}/ns/f`, '-m', 'x']],
    [['packages', join(folder, HOSTILE)]],
    [['mount', pkg, join(folder, HOSTILE)]],
    [['umount', join(folder, HOSTILE)]],
    [['runs']],
    [['runs', runId]],
    [['runs', '--json']],
    [['record', 'verify', runId]],
    [['record', 'verify', runId, '--json']],
    [['record', 'push', runId, `${registry}/ns/out`]],
    [['reproduce', runId]],
    [['reproduce', HOSTILE]],
    [['run', '--host', '--code', join(folder, HOSTILE), '--', 'true']],
    [['run', '--host', '--no-code', '--no-loader', '--', HOSTILE]],
    [['status'], { BOBBIN_CACHE: oddCache }],
    [['stop'], { BOBBIN_CACHE: oddCache }],
    [['doctor'], { BOBBIN_CACHE: oddCache }],
    [['loader', '--listen', HOSTILE]],
    [['ls', pkg, `--${HOSTILE}`]],
    [[HOSTILE]],
  ]
  for (const [args, more] of cases) {
    const shown = await shownBy(args, more)
    const name = args.map(word => JSON.stringify(word)).join(' ')
    t.same(controlsIn(shown), [], `${name}: ${JSON.stringify(shown).slice(0, 500)}`)
    t.ok(shown.length > 0, `${name} said something`)
    t.notMatch(shown, /^bobbin: all is well/m, `${name}: no name begins a line`)
  }
})

t.test('a name is shown whole on a terminal, with what is in it', async t => {
  t.equal((await shownBy(['ls', pkg, 'dir'])).split('\n')[0], `dir/${SHOWN}`)
  t.equal((await shownBy(['ls', pkg, 'dir'])).split('\n').length, 3, 'one line per name')
  t.match(await shownBy(['runs', runId]), `MODE=${SHOWN}`)
})

t.test('scripts get names as they are, and the same JSON documents (S78)', async t => {
  t.equal(await cli.text('ls', pkg, 'dir'), `${key}\n${key}2\n`)
  const json = await cli.text('ls', pkg, 'dir', '--json')
  t.same(controlsIn(json), [], 'also where it is looked at later')
  t.same(
    json
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line).key),
    [key, `${key}2`],
  )
  t.match(await cli.json('resolve', pkg), { message: HOSTILE, metadata: meta })
})

t.test("a stranger's command has no terminal either, and its log has what it printed (S78)", async t => {
  const runs = join(folder, 'again')
  const env = { BOBBIN_STATE: runs }
  const printed = '\\033]0;owned\\007\\033[2J \\302\\2332J 50%%\\r100%% \\343\\201\\202\\n'
  const line = ['run', '--host', '--no-code', '--no-loader', '--', 'printf', printed]
  t.match(await shownBy(line, env), '\u001b]0;owned\u0007', 'what one runs oneself is shown as it is')
  const { runId } = JSON.parse((await shownBy(['runs', '--json'], env)).trim())
  const shown = await shownBy(['reproduce', runId, '--allow-host'], env)
  t.match(shown, '\\u001b]0;owned\\u0007\\u001b[2J \\u009b2J 50%\r100% あ\n')
  t.same(
    controlsIn(shown).filter(found => found !== '"\\r"'),
    [],
  )
  rmSync(runs, { recursive: true })
})

t.test('whatever a text is, no control character is left in it, and JSON stays the same document', async t => {
  const texts = fc.string({ unit: 'binary' })
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(texts, text => {
        const json = JSON.stringify({ [text]: text })
        return (
          controlsIn(escapeControls(text)).length === 0 &&
          !escapeControls(text).includes('\n') &&
          !/\n(?! {2})/.test(escapeMessage(text)) &&
          controlsIn(escapeOutput(text).replace(/[\r\t\b]/g, '')).length === 0 &&
          controlsIn(escapeJson(json)).length === 0 &&
          JSON.parse(escapeJson(json))[text] === text
        )
      }),
    ),
  )
})
