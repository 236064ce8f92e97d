/** A record of a stranger, as the launch plan of `reproduce`: which words are refused, and which rights have to be allowed. */
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import type { RunFacts } from '../../../../cli/record/run-facts.js'
import { findCode } from '../../../../cli/run/code.js'
import { containerCommand } from '../../../../cli/run/container.js'
import { formatEngineOption, parseEngineOptions, rightsOfOptions } from '../../../../cli/run/engine-options.js'
import { askedBy, replayOf } from '../../../../cli/run/from-record.js'
import { type AllowFlags, refuseUnlessAllowed, rightsOf } from '../../../../cli/run/rights.js'
import { testFolder } from '../../../support/daemon.js'

const digest = `sha256:${'a'.repeat(64)}`
const image = {
  asked: 'team/trainer:v1',
  reference: `team/trainer@${digest}`,
  digest,
  repository: 'team/trainer',
  id: null,
  platformManifest: digest,
  platform: 'linux/amd64',
  localOnly: false,
}
const mount = {
  asked: 's3://bucket/cv/coco:/data',
  registry: 's3://bucket',
  package: 'cv/coco',
  topHash: 'b'.repeat(64),
  manifestSha256: 'c'.repeat(64),
  entries: 1,
  bytes: 1,
  mountpoint: '/mnt/data',
  target: '/data',
  mountedAt: '2026-01-01T00:00:00Z',
  cacheDir: '/cache',
}
const facts: RunFacts = {
  version: 1,
  runId: '01900000-0000-7000-8000-000000000000',
  bobbin: '0.1.0',
  pid: 1,
  host: 'elsewhere',
  engine: { name: 'docker', version: '20' },
  command: ['python', 'train.py'],
  env: {},
  options: ['--shm-size=8g', '--ulimit=memlock=-1', '--ulimit=stack=67108864', '--network=none'],
  image,
  mounts: [mount],
  loaderSocket: null,
  startedOn: '2026-01-01T00:00:00Z',
}
const { image: _, ...withoutImage } = facts
const bare: RunFacts = { ...withoutImage, engine: { name: 'host', version: 'v20' }, options: [], cwd: '/home/u' }
const refused = { code: 'INVALID_ARGUMENT', message: /not one that bobbin run writes|there twice/ }

/** The arguments that an engine would get. */
function planOf(record: RunFacts): string[] {
  const { command, env, passed, options } = replayOf(record)
  return containerCommand({
    engine: 'docker',
    runId: record.runId,
    image,
    command,
    env,
    passed,
    bindings: [],
    engineOptions: options,
  })
}

t.test("of a record's options only those pass that run itself writes, printed again by us (S75)", async t => {
  const plan = planOf(facts)
  for (const option of facts.options) t.ok(plan.includes(option))
  for (const option of [
    '--privileged',
    '--privileged=true',
    '-v=/:/host',
    '-v/:/host',
    'evil/image',
    '--',
    '',
    '--volume',
    '--cap-add=ALL',
    '--device=/dev/sda',
    '--pid=host',
    '--security-opt=seccomp=unconfined',
    '--env=AWS_SECRET_ACCESS_KEY',
    '--env-file=/etc/shadow',
    '--mount=type=bind,source=/,target=/host',
    '--name=another',
    '--network',
    '--network=none\n--privileged',
    '--memory=--privileged',
    '--memory=1g evil/image',
    '--user=-v/:/host',
    '--workdir=--privileged',
    '--ulimit=--privileged',
    '--cpus=1 --privileged',
    '--constructor=x',
    '--shmSize=1g',
    'shm-size=1g',
  ])
    t.throws(() => replayOf({ ...facts, options: [option] }), refused, option)
  t.throws(() => replayOf({ ...facts, options: ['--network=none', '--network=host'] }), refused, 'the later one wins')
})

t.test('whatever text a record has as options, each argument before the image is one of ours (S75)', async t => {
  const word = fc.oneof(
    fc.string(),
    fc.constantFrom(...facts.options, '--privileged', '--', 'image', '--volume=/:/host', '--entrypoint='),
    fc.string().map(value => `--network=${value}`),
    fc.string().map(value => `--entrypoint=${value}`),
  )
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(fc.array(word, { maxLength: 4 }), options => {
        let plan: string[]
        try {
          plan = planOf({ ...facts, options })
        } catch (error) {
          return (error as { code?: string }).code === 'INVALID_ARGUMENT'
        }
        const at = plan.indexOf('--')
        return (
          plan[at + 1] === image.reference && plan.slice(at - options.length, at).every((one, i) => one === options[i])
        )
      }),
    ),
  )
})

t.test(
  'every other word of a record that would reach an argument, a path or the environment is checked (S75)',
  async t => {
    const hostile: readonly [string, Partial<RunFacts>][] = [
      ['an image that is an option', { image: { ...image, reference: '--privileged' } }],
      ['an image by a tag', { image: { ...image, reference: 'evil/image:latest' } }],
      ['a second word', { image: { ...image, reference: `evil ${image.reference}` } }],
      ['a variable that is none', { env: { 'A=B': 'x' } }],
      ['a variable without a name', { env: { '': 'x' } }],
      ['all variables (podman)', { passed: ['*'] }],
      ['a variable with its value', { passed: ['A=--privileged'] }],
      ['a NUL in a value', { env: { A: 'a\0b' } }],
      ['a NUL in the command', { command: ['a\0b'] }],
      ['a second mount', { mounts: [{ ...mount, target: '/data,source=/etc' }] }],
      ['a relative target', { mounts: [{ ...mount, target: 'data' }] }],
      ['the root', { mounts: [{ ...mount, target: '/data/..' }] }],
      ['a registry that is a path', { mounts: [{ ...mount, registry: '--x' }] }],
    ]
    for (const [what, change] of hostile) t.throws(() => replayOf({ ...facts, ...change }), refused, what)
    const hostileBare: readonly [string, Partial<RunFacts>][] = [
      ['options without a container', { options: ['--network=host'] }],
      ['no command', { command: [] }],
      ['a folder above the code', { cwd: '../../x' }],
      ['a mountpoint that is elsewhere', { mounts: [{ ...mount, target: '/mnt/../etc' }] }],
      ['a relative mountpoint', { mounts: [{ ...mount, target: 'etc' }] }],
    ]
    for (const [what, change] of hostileBare) t.throws(() => replayOf({ ...bare, ...change }), refused, what)
    t.throws(() => replayOf({ ...bare, image }), refused, 'an image without an engine')
    t.throws(() => replayOf({ ...withoutImage }), refused, 'an engine without an image')
  },
)

t.test('what widens rights is listed, all of it, and nothing goes on before each kind is allowed (S76)', async t => {
  t.same(askedBy(replayOf(facts), undefined), [], 'a container of its own asks for nothing')
  const asking = {
    ...facts,
    options: ['--gpus=all', '--ipc=host', '--network=host', '--volume=/:/host'],
    env: { LD_PRELOAD: '/x' },
    passed: ['AWS_SECRET_ACCESS_KEY'],
  }
  const asked = askedBy(replayOf(asking), undefined)
  t.same(
    asked.map(({ right }) => right),
    ['devices', 'ipc', 'network', 'volumes', 'variables', 'variables'],
  )
  const all = { allowDevices: true, allowIpc: true, allowNetwork: true, allowVolumes: true, allowVariables: true }
  t.throws(() => refuseUnlessAllowed(asked, rightsOf({})), {
    code: 'INVALID_ARGUMENT',
    message: /--gpus=all.*--ipc=host.*--network=host.*--volume=\/:\/host.*LD_PRELOAD=\/x.*AWS_SECRET_ACCESS_KEY, with/s,
  })
  for (const left of Object.keys(all) as (keyof AllowFlags)[]) {
    const flag = `--allow-${left.slice('allow'.length).toLowerCase()}`
    t.throws(() => refuseUnlessAllowed(asked, rightsOf({ ...all, [left]: false })), { message: flag }, left)
  }
  t.doesNotThrow(() => refuseUnlessAllowed(asked, rightsOf(all)))
})

t.test('an option of a network or of memory segments that is not known to be its own is asked about (S76)', async t => {
  const rights = (...options: string[]) => rightsOfOptions(parseEngineOptions(options)).map(({ right }) => right)
  t.same(rights('--network=none', '--ipc=private'), [])
  for (const value of ['host', 'container:x', 'ns:/proc/1/ns/net', 'some-name', 'HOST'])
    t.same(rights(`--network=${value}`), ['network'], value)
  for (const value of ['host', 'container:x', 'ns:/proc/1/ns/ipc']) t.same(rights(`--ipc=${value}`), ['ipc'], value)
  t.same(rights('--user=0:0', '--workdir=/x', '--entrypoint=sh', '--memory=1g', '--cpus=2.5', '--ulimit=core=0'), [])
})

t.test('a bare process has all rights of its user, so all that it is given is listed (S76)', async t => {
  const asked = askedBy(replayOf({ ...bare, env: { A: '1' }, command: ['sh', '-c', 'rm -rf ~'] }), undefined)
  t.same(
    asked.map(({ right, what }) => `${right}: ${what}`),
    ["host: A=1 sh -c 'rm -rf ~' in /home/u", `host: s3://bucket/cv/coco@${'b'.repeat(64)} mounted at /data`],
  )
  t.throws(() => refuseUnlessAllowed([{ right: 'host', what: 'a\n  - b\u001b[2J' }], rightsOf({})), {
    message: /a\\u000a {2}- b\\u001b\[2J/,
  })
})

t.test(
  'code from a folder of this machine, or with its keys, is asked about, and programs are no remotes (S76)',
  async t => {
    const folder = testFolder(t)
    mkdirSync(join(folder, '.git'))
    const code = {
      folder: '/nowhere',
      commit: 'f'.repeat(40),
      tree: 'e'.repeat(40),
      ref: null,
      remote: null,
      isDirty: false,
      untracked: 0,
      diffSha256: null,
    }
    const asks = async (change: object) => (await findCode({ ...code, ...change })).asks
    t.equal(await asks({}), undefined)
    t.equal(await asks({ folder }), folder)
    for (const remote of ['https://host/a.git', 'http://host/a', 'git://host/a'])
      t.equal(await asks({ remote }), undefined, remote)
    for (const remote of ['git@host:a.git', 'ssh://host/a', '/home/u/private', 'file:///home/u/private', '../private'])
      t.equal(await asks({ remote }), remote)
    for (const remote of [
      'ext::sh -c touch% x',
      'fd::7',
      '--upload-pack=x',
      '-x',
      'https://h/a\n',
      'ftp://host/a',
      'evil://x',
    ])
      t.equal((await findCode({ ...code, remote })).remote, undefined, remote)
  },
)

t.test('options are printed as they were parsed', async t => {
  t.same(parseEngineOptions(facts.options).map(formatEngineOption), facts.options)
})
