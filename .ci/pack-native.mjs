/**
 * Makes the npm package that holds bobbin-fuse ready to run, one a processor (the layout of esbuild and
 * Biome): build/packages/bobbin-fuse-linux-<arch>-<version>.tgz.
 *
 *   npm run pack:native -- [--arch x64|arm64]...      default: the processor we are on
 *
 * The C library is linked in, so that the program runs on any Linux, old glibc or musl. Whether it does
 * run is tried before it is packed: on another processor with qemu, where there is one. Plain Node.js.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const ARCHES = {
  x64: { machine: 'Advanced Micro Devices X86-64' },
  arm64: { machine: 'AArch64', prefix: 'aarch64-linux-gnu-', qemu: 'qemu-aarch64', toolchain: 'cmake/aarch64.cmake' },
}
const PROGRAM_BYTES_MAX = 4 * 2 ** 20

const { values } = parseArgs({ options: { arch: { type: 'string', multiple: true } } })
const arches = values.arch ?? [process.arch]
if (process.platform !== 'linux') fail('bobbin-fuse is for Linux, and is built there')
for (const arch of arches) {
  if (!(arch in ARCHES)) fail(`usage: npm run pack:native -- [--arch ${Object.keys(ARCHES).join(' | ')}]...`)
}
const { version, license } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
for (const arch of arches) pack(arch)

function pack(arch) {
  const program = join(build(arch), 'bobbin-fuse')
  const name = `bobbin-fuse-linux-${arch}`
  const folder = join(root, 'build', 'packages', name)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(join(folder, 'bin'), { recursive: true })
  const packed = join(folder, 'bin', 'bobbin-fuse')
  output(tool(arch, 'strip'), ['-o', packed, program])
  chmodSync(packed, 0o755)
  const needs = check(arch, packed)
  copyFileSync(join(root, 'LICENSE'), join(folder, 'LICENSE'))
  writeFileSync(join(folder, 'README.md'), readme(name, needs))
  const description = {
    name,
    version,
    description: `bobbin-fuse for Linux on ${arch}: serves the mounts of bobbin`,
    license,
    os: ['linux'],
    cpu: [arch],
    files: ['bin'],
    // Yarn would leave it in its archive, from where it cannot be executed.
    preferUnplugged: true,
  }
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(description, null, 2)}\n`)
  const tgz = output('npm', ['pack', '--silent', '--pack-destination', dirname(folder), folder]).trim()
  say(`build/packages/${tgz}: ${statSync(packed).size} bytes unpacked, needs ${needs}`)
}

/** The folder it was built in. */
function build(arch) {
  const folder = join(root, 'build', `release-${arch}`)
  const { toolchain } = ARCHES[arch]
  const isForeign = arch !== process.arch
  if (isForeign && toolchain === undefined) fail(`${arch} can only be built on ${arch}`)
  output('cmake', [
    ...['-S', join(root, 'native'), '-B', folder, '-DBOBBIN_STATIC=ON', '-DCMAKE_BUILD_TYPE=Release'],
    ...(isForeign ? ['--toolchain', join(root, 'native', toolchain)] : []),
  ])
  output('cmake', ['--build', folder, '--target', 'bobbin-fuse', '--parallel', '4'])
  return folder
}

/** What it needs to run. Ends with what is wrong when it is not what the package promises. */
function check(arch, path) {
  const { machine, qemu } = ARCHES[arch]
  const header = output('readelf', ['--file-header', '--program-headers', path])
  if (!header.includes(machine)) fail(`${path} is not for ${arch}:\n${header}`)
  if (statSync(path).size > PROGRAM_BYTES_MAX) fail(`${path} has ${statSync(path).size} bytes: was it stripped?`)
  const shared = [...output('readelf', ['--dynamic', path]).matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(([, name]) => name)
  const symbols = [...output('readelf', ['--dyn-syms', '--wide', path]).matchAll(/@GLIBC_([\d.]+)/g)].map(
    ([, at]) => at,
  )
  // An interpreter would be the host's loader, which need not be there.
  if (shared.length > 0 || symbols.length > 0 || header.includes('INTERP'))
    fail(`${path} needs ${shared.join(', ')}, GLIBC ${symbols.sort(byVersion).at(-1)}: it was to need no library`)
  const kernel = /OS: Linux, ABI: ([\d.]+)/.exec(output('readelf', ['--notes', path]))?.[1]
  const runner = arch === process.arch ? [] : [qemu, `${qemu}-static`].filter(hasProgram).slice(0, 1)
  if (arch !== process.arch && runner.length === 0) say(`${arch}: no ${qemu} here (apt-get install qemu-user), not run`)
  else {
    const [command, ...args] = [...runner, path]
    const said = output(command, [...args, '--version']).trim()
    if (said !== `bobbin-fuse ${version}`) fail(`${path} --version says ${JSON.stringify(said)}`)
    if (!/^\d+\n$/.test(output(command, [...args, '--state-version']))) fail(`${path} knows no --state-version`)
  }
  return `no shared library${kernel === undefined ? '' : `; its C library a kernel of ${kernel}`}; bobbin-fuse Linux 5.4`
}

function readme(name, needs) {
  return `# ${name}

The program bobbin-fuse ${version}, which bobbin finds here and starts. It needs ${needs}.

It contains parts of the GNU C Library (LGPL-2.1-or-later) and of the GNU C++ runtime (GPL-3.0 with the GCC
Runtime Library Exception); it is built from bobbin's sources by \`npm run pack:native\`.
`
}

function byVersion(a, b) {
  return a.localeCompare(b, 'en', { numeric: true })
}

function tool(arch, name) {
  return arch === process.arch ? name : ARCHES[arch].prefix + name
}

function hasProgram(name) {
  return spawnSync(name, ['--version']).status === 0
}

function output(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: root, encoding: 'utf8' })
  if (status !== 0) fail(`${command} ${args.join(' ')} failed\n${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}`)
  return stdout
}

function say(text) {
  process.stdout.write(`${text}\n`)
}

function fail(text) {
  process.stderr.write(`pack-native: ${text}\n`)
  process.exit(1)
}
