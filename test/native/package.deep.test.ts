/** The npm package with bobbin-fuse in it: made, installed, found and used, as people would have it. */
import { spawnSync } from 'node:child_process'
import { copyFileSync, cpSync, mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { daemonCommand, FoundBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import type { MountFacts } from '../../daemon/control/schema.js'
import { type Outcome, runProgram } from '../support/cli.js'
import { cannotMount, mountsBelow, testFolder } from '../support/daemon.js'
import { repository } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'
import { skipTest } from '../support/skips.js'

/** A release build with two cores that others use takes a minute. */
const PACK_MS = 280_000
const ENV = { ...process.env, BOBBIN_FUSE: undefined, AWS_EC2_METADATA_DISABLED: 'true' }

t.setTimeout(600_000)

const { version } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')) as { version: string }

function missing(...programs: string[]): string | false {
  const lacking = programs.filter(program => spawnSync(program, ['--version']).status !== 0)
  return lacking.length > 0 && `${lacking.join(' and ')} missing here`
}

const cannotBuild = process.platform === 'linux' ? missing('cmake', 'g++') : 'bobbin-fuse is for Linux'

async function pack(t: Test, arch: string): Promise<{ tgz: string; said: string }> {
  const { status, stdout, stderr } = await runProgram(
    process.execPath,
    [join(repository, '.ci/pack-native.mjs'), '--arch', arch],
    { env: ENV, timeoutMs: PACK_MS },
  )
  t.equal(status, 0, `packs for ${arch}`, { stderr })
  t.comment(stdout.trim())
  return { tgz: join(repository, `build/packages/bobbin-fuse-linux-${arch}-${version}.tgz`), said: stdout }
}

const npmInstall = (folder: string, tgz: string) =>
  runProgram('npm', ['install', '--offline', '--no-audit', '--no-fund', '--prefix', folder, tgz], { env: ENV })

/** Bobbin as it would be installed: no build folder beside it, its other dependencies one level up. */
function installed(t: Test): string {
  const above = testFolder(t)
  const folder = join(above, 'bobbin')
  mkdirSync(folder)
  writeFileSync(join(folder, 'package.json'), '{"private":true}')
  symlinkSync(join(repository, 'node_modules'), join(above, 'node_modules'))
  for (const part of ['daemon', 'cli'])
    cpSync(join(repository, 'dist', part), join(folder, 'dist', part), { recursive: true })
  return folder
}

async function ask(folder: string, env: NodeJS.ProcessEnv = {}) {
  const script = `
    const { findBobbinFuse, daemonCommand } = await import(process.argv[1])
    const command = daemonCommand({ cacheDir: '/cache', ioTimeoutMs: 1, offline: false })
    console.log(JSON.stringify({ found: findBobbinFuse(), command }))`
  const module = join(folder, 'dist/daemon/control/bobbin-fuse.js')
  const args = ['--input-type=module', '-e', script, module]
  const { stdout, stderr } = await runProgram(process.execPath, args, { env: { ...ENV, ...env } })
  if (stdout === '') throw new Error(stderr)
  return JSON.parse(stdout) as { found: FoundBobbinFuse; command: ReturnType<typeof daemonCommand> }
}

/** Mounts a small package by the command line of this installation, reads it, and puts everything away. */
async function mountAndRead(t: Test, folder: string, env: NodeJS.ProcessEnv = {}) {
  const work = testFolder(t)
  const written = await writeRegistry(join(work, 'registry'), 'test/small', { 'a/f': 'bytes' })
  const mountpoint = join(work, 'mnt')
  mkdirSync(mountpoint)
  const bobbin = (...args: string[]): Promise<Outcome> =>
    runProgram(process.execPath, [join(folder, 'dist/cli/main.js'), ...args], {
      env: { ...ENV, BOBBIN_CACHE: join(work, 'cache'), BOBBIN_FREE_FLOOR: '0', ...env },
    })
  t.teardown(() => bobbin('stop', '--force'))
  const mounted = await bobbin('mount', written.reference, mountpoint, '--json')
  if (!t.equal(mounted.status, 0, 'mounts', { stderr: mounted.stderr })) throw new Error('not mounted')
  t.equal(await readFile(join(mountpoint, 'a/f'), 'utf8'), 'bytes')
  t.equal((await bobbin('stop')).status, 0)
  t.same(mountsBelow(work), [])
  return { facts: JSON.parse(mounted.stdout) as MountFacts, said: mounted.stderr }
}

t.test('the prebuilt package', { skip: cannotBuild }, async t => {
  const { tgz, said } = await pack(t, process.arch)
  t.match(said, /needs no shared library/)
  const folder = installed(t)
  const module = join(folder, 'node_modules', `bobbin-fuse-linux-${process.arch}`)

  await t.test('without it, the daemon is started by itself, and the reason says what is missing', async t => {
    const { found, command } = await ask(folder)
    t.match(found, { reason: new RegExp(`no prebuilt bobbin-fuse-linux-${process.arch}, .*build:native`) })
    t.equal(command.argv[0], process.execPath)
    t.equal(command.because, found.reason)
  })

  await t.test('installed by npm, it is found', async t => {
    const { status, stderr } = await npmInstall(folder, tgz)
    t.equal(status, 0, 'npm installs it', { stderr })
    copyFileSync(join(repository, 'package.json'), join(folder, 'package.json'))
    const { found, command } = await ask(folder)
    t.same(found, { path: join(module, 'bin/bobbin-fuse') })
    t.same(command.argv.slice(0, 3), [found.path, '--cache', '/cache'])
    t.match(JSON.parse(readFileSync(join(module, 'package.json'), 'utf8')), {
      version,
      os: ['linux'],
      cpu: [process.arch],
    })
  })

  await t.test('it runs where there is no library at all', async t => {
    if (process.getuid?.() !== 0) return skipTest(t, 'needs root, for chroot')
    const empty = testFolder(t)
    copyFileSync(join(module, 'bin/bobbin-fuse'), join(empty, 'bobbin-fuse'))
    const { stdout, stderr } = await runProgram('chroot', [empty, '/bobbin-fuse', '--version'])
    t.equal(stdout, `bobbin-fuse ${version}\n`, stderr)
  })

  await t.test('bobbin mounts through it', { skip: cannotMount() }, async t => {
    const { facts } = await mountAndRead(t, folder)
    t.equal(facts.transport, 'native')
  })

  await t.test('switched off, bobbin mounts through fuse-native and says so', { skip: cannotMount() }, async t => {
    const env = { BOBBIN_FUSE: 'none' }
    const { found, command } = await ask(folder, env)
    t.match(found, { reason: /switched off/ })
    t.equal(command.argv[0], process.execPath)
    const { facts, said } = await mountAndRead(t, folder, env)
    t.equal(facts.transport, 'fuse-native')
    t.match(said, /through fuse-native, which is slow: bobbin-fuse cannot be used, it is switched off/)
  })

  await t.test('one that does not run is no reason to fail', async t => {
    const program = join(module, 'bin/bobbin-fuse')
    renameSync(program, `${program}.good`)
    writeFileSync(program, 'not a program', { mode: 0o755 })
    const { found, command } = await ask(folder)
    t.match(found, { reason: /does not run/ })
    t.equal(command.argv[0], process.execPath)
    renameSync(`${program}.good`, program)
  })
})

const cannotCross = cannotBuild || (process.arch === 'x64' ? missing('aarch64-linux-gnu-g++') : 'this is not x64')

t.test('the package for arm64 is cross-built, runs, and is not installed on x64', { skip: cannotCross }, async t => {
  const { tgz, said } = await pack(t, 'arm64')
  t.match(said, /needs no shared library/)
  t.notMatch(said, /not run/, 'qemu has run it')
  const folder = installed(t)
  const { status, stderr } = await npmInstall(folder, tgz)
  t.not(status, 0)
  t.match(stderr, /EBADPLATFORM/)
})
