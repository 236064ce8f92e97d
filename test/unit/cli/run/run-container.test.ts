import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { containerCommand } from '../../../../cli/run/container.js'
import {
  type EngineFlags,
  engineOptions,
  formatEngineOption,
  refuseEngineFlags,
} from '../../../../cli/run/engine-options.js'
import { identifyImage } from '../../../../cli/run/image.js'

const printed = (flags: EngineFlags) => engineOptions(flags).map(formatEngineOption)

t.test('engineOptions gives runs with GPUs the memory and limits that DataLoader needs', async t => {
  t.same(printed({ gpus: 'all' }), ['--gpus=all', '--shm-size=8g', '--ulimit=memlock=-1', '--ulimit=stack=67108864'])
  t.same(printed({}), [], 'and others nothing')
})

t.test('engineOptions takes what is given instead of what it would give', async t => {
  t.same(printed({ gpus: '"device=0,1"', shmSize: '1g' }), [
    '--gpus="device=0,1"',
    '--shm-size=1g',
    '--ulimit=memlock=-1',
    '--ulimit=stack=67108864',
  ])
  t.same(printed({ gpus: '1', ulimit: ['nofile=4096'] }), ['--gpus=1', '--shm-size=8g', '--ulimit=nofile=4096'])
  t.same(
    printed({ gpus: 'all', ipc: 'host' }),
    ['--gpus=all', '--ulimit=memlock=-1', '--ulimit=stack=67108864', '--ipc=host'],
    'engines refuse a size for a /dev/shm that is not theirs',
  )
})

t.test('engineOptions puts every value behind its name, so that none is an option', async t => {
  const hostile = '--privileged'
  const options = printed({
    gpus: hostile,
    shmSize: hostile,
    ulimit: [hostile],
    ipc: hostile,
    user: hostile,
    workdir: hostile,
    network: hostile,
    cpus: hostile,
    memory: hostile,
    entrypoint: hostile,
    volume: [hostile],
  })
  t.equal(options.length, 11)
  for (const option of options) t.match(option, /^--[a-z-]+=--privileged$/)
})

t.test('refuseEngineFlags names what a bare process would not heed', async t => {
  refuseEngineFlags({})
  t.throws(() => refuseEngineFlags({ gpus: 'all', shmSize: '1g', volume: ['/a:/a'] }), {
    code: 'INVALID_ARGUMENT',
    message: '--gpus, --shm-size, --volume: only for containers, and --host starts no container',
  })
})

t.test('containerCommand ends its options before the image, and refuses what is no one bind', async t => {
  const image = {
    asked: 'a:1',
    reference: `a@sha256:${'0'.repeat(64)}`,
    digest: `sha256:${'0'.repeat(64)}`,
    repository: 'a',
    id: `sha256:${'1'.repeat(64)}`,
    platformManifest: null,
    platform: 'linux/amd64',
    localOnly: false,
  }
  const of = (target: string) =>
    containerCommand({
      engine: 'docker',
      runId: 'x',
      image,
      command: ['--privileged'],
      env: { A: '--volume=/:/host\nB=1' },
      passed: ['B'],
      bindings: [{ source: '/from', target, isFollowed: true }],
      engineOptions: engineOptions({ gpus: 'all' }),
    })
  const line = of('/-v/:/host')
  t.same(line.slice(line.indexOf('--')), ['--', image.reference, '--privileged'])
  t.ok(line.includes('--env=A=--volume=/:/host\nB=1'))
  t.ok(line.includes('--mount=type=bind,source=/from,target=/-v/:/host,readonly,bind-propagation=rslave'))
  for (const target of ['/a,source=/etc', '/a\n', '/"a"'])
    t.throws(() => of(target), { code: 'INVALID_ARGUMENT', message: /plainer path/ })
})

t.test(
  'identifyImage believes no digest below a name of the containerd store before a registry has told it',
  async t => {
    // What docker 26.1.5 answers; engines with this store are not to be had everywhere (test/containers tries a real one).
    const digest = `sha256:${'c'.repeat(64)}`
    const answers = (isPushed: boolean) => `#!/bin/sh
case "$1 $2" in
  "image inspect") echo '[{"Id": "${digest}", "RepoDigests": ["team/t@${digest}"], "Os": "linux", "Architecture": "amd64"}]' ;;
  "info --format") echo '[["driver-type","io.containerd.snapshotter.v1"]]' ;;
  "manifest inspect") ${isPushed ? `echo '{"Descriptor": {"digest": "${digest}"}}'` : 'echo "no such manifest" >&2; exit 1'} ;;
esac
`
    const docker = join(t.testdir({}), 'docker')
    const found = async (isPushed: boolean) => {
      writeFileSync(docker, answers(isPushed), { mode: 0o755 })
      return await identifyImage(docker, 'team/t:v1', { signal: new AbortController().signal, onPull() {} })
    }
    const same = { asked: 'team/t:v1', reference: `team/t@${digest}`, digest, id: null, platform: 'linux/amd64' }
    t.strictSame(await found(false), { ...same, repository: null, platformManifest: null, localOnly: true })
    t.strictSame(await found(true), { ...same, repository: 'team/t', platformManifest: digest, localOnly: false })
  },
)
