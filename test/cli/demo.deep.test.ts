/** The demo as people run it; however it ends, nothing may be left of it. */
import { spawn } from 'node:child_process'
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { daemonsOf } from '../demo/stage.js'
import { cannotMount } from '../support/can-mount.js'
import { testFolder } from '../support/daemon.js'

const DEMO = fileURLToPath(new URL('../demo/demo.js', import.meta.url))

interface RunOptions {
  readonly env?: NodeJS.ProcessEnv
  /** What to start it with, ending in an exec of its arguments. */
  readonly prefix?: readonly string[]
  /** Called with all that it has printed, whenever it prints. */
  readonly onOutput?: (output: string, child: ReturnType<typeof spawn>) => void
}

t.test('the demo does what it says, whatever the settings and the language', { skip: cannotMount() }, async t => {
  const env = { BOBBIN_OFFLINE: '1', BOBBIN_CACHE_LIMIT: 'nonsense', LC_ALL: 'de_DE.UTF-8' }
  const { status, output } = await playDemo(t, { env })
  t.equal(status, 0, 'it ends well', { output })
  for (const line of [
    '7b6d79ecdbe41f4ebd18c3aff9e22a50387ad8ab0fe9a59b80c08cac395b7385',
    'mean of temp_max over 1461 days: 16.44',
    'Read-only file system',
    'daemon.log: a cached object does not hash to its name',
    '121 plain.csv',
    'Input/output error',
    'it was changed or cut, and nothing of it is used',
    'changed  climate/global-temp.csv',
    'Everything did what it should; nothing is left behind.',
  ]) {
    t.match(output, line)
  }
})

for (const [when, signal, exitCode] of [
  ['$ bobbin resolve', 'SIGINT', 130],
  ['$ bobbin mount', 'SIGINT', 130],
  ['mounted on /demo/data', 'SIGHUP', 129],
  ['mounted on /demo/copied', 'SIGTERM', 143],
] as const) {
  t.test(`the demo leaves nothing behind when ${signal} comes at "${when}"`, { skip: cannotMount() }, async t => {
    let isSent = false
    const { status, output } = await playDemo(t, {
      onOutput: (output, child) => {
        if (isSent || !output.includes(when)) return
        isSent = true
        child.kill(signal)
        // Once more, as impatient people do.
        setTimeout(() => child.kill(signal), 100)
      },
    })
    t.equal(status, exitCode, 'its exit code says so', { output })
    t.notMatch(output, 'Everything did')
  })
}

t.test('the demo leaves nothing behind when nobody reads on', { skip: cannotMount() }, async t => {
  const { status } = await playDemo(t, {
    onOutput: (output, child) => output.includes('mounted on') && child.stdout!.destroy(),
  })
  t.equal(status, 1)
})

t.test('the demo says which step fails, and leaves nothing behind', { skip: cannotMount() }, async t => {
  const bin = join(testFolder(t), 'bin')
  mkdirSync(bin)
  writeFileSync(join(bin, 'awk'), '#!/bin/sh\necho mean of temp_max over 1461 days: 99.99\n')
  chmodSync(join(bin, 'awk'), 0o755)
  const { status, output } = await playDemo(t, { env: { PATH: `${bin}:${process.env.PATH}` } })
  t.equal(status, 1)
  t.match(output, /the demo failed: "awk .* did not print .*16\\\.44/)
})

t.test(
  'the demo plays the rest where nothing can be mounted, and ends with 14',
  { skip: process.getuid?.() !== 0 && 'only root has the right to mount to give up' },
  async t => {
    const { status, output } = await playDemo(t, { prefix: ['setpriv', '--bounding-set', '-sys_admin'] })
    t.equal(status, 14, 'its exit code says so', { output })
    t.match(output, '$ bobbin doctor')
    t.match(output, /FAIL +unmount|FAIL +\/dev\/fuse/)
    t.match(output, 'nothing can be mounted here')
    t.match(output, 'it was changed or cut, and nothing of it is used')
    t.match(output, 'All but the mount did what it should')
  },
)

/** In a temporary folder of its own, which is empty afterwards, as are the mount and the process table. */
async function playDemo(
  t: Test,
  { env, prefix = [], onOutput }: RunOptions = {},
): Promise<{ status: number | null; output: string }> {
  const folder = testFolder(t)
  const [command, ...args] = [...prefix, process.execPath, DEMO]
  const child = spawn(command!, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env, TMPDIR: folder },
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
      onOutput?.(output, child)
    })
  }
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  t.strictSame(readdirSync(folder), [], 'its folder is gone')
  t.notMatch(readFileSync('/proc/self/mountinfo', 'utf8'), folder, 'nothing is mounted')
  t.strictSame(daemonsOf(folder), [], 'no daemon runs')
  return { status, output }
}
