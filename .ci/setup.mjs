/**
 * Sets this checkout up for one of the README's commands: system packages, node_modules, the build in
 * dist/, bobbin-fuse in build/native, and for the interop suite the real parts. Plain Node.js: it runs
 * before anything is installed.
 *
 *   node .ci/setup.mjs --for demo | test | deep | interop | clients | containers | bench
 *
 * Each step runs only when something is missing or older than its sources.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const purposes = ['demo', 'test', 'deep', 'interop', 'clients', 'containers', 'bench']
const purpose = process.argv[process.argv.indexOf('--for') + 1] ?? ''
if (!purposes.includes(purpose)) fail(`usage: node .ci/setup.mjs --for ${purposes.join(' | ')}`)

const VERSITYGW = 'github.com/versity/versitygw/cmd/versitygw@v1.8.0'
const MINIO = 'github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c'
const QUILT3 = 'quilt3==8.0.0'
const parts = process.env.BOBBIN_PARTS ?? join(root, '.parts')
const needsServers = ['interop', 'containers', 'bench'].includes(purpose)
const needsClients = purpose === 'clients' || purpose === 'bench'
/** The demo never asks for a compiler. */
const wantsNative = purpose !== 'demo'
const trainer = join(parts, 'trainer.tar')
const bobbinFuse = join(root, 'build', 'native', 'bobbin-fuse')

checkNode()
installSystemPackages()
if (wantsNative) installNativeTools()
if (!needsServers || purpose === 'containers') checkFuse()
installNodeModules()
build()
buildNative()
linkCommand()
if (needsServers) installServers()
if (needsClients) installClients()
if (purpose === 'containers') makeTrainer()

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > 20 || (major === 20 && minor >= 19)) return
  fail(`Node.js 20.19 or newer is needed; this is ${process.version}`)
}

/** Not an error: what needs no mount works, and tests that need one say why they are skipped. */
function checkFuse() {
  if (existsSync('/dev/fuse')) return
  say('there is no /dev/fuse here, so nothing can be mounted: modprobe fuse as root, or start the container with')
  say('  --device /dev/fuse --cap-add SYS_ADMIN')
}

/** What is missing is named first; root on Debian or Ubuntu gets it installed, everybody else gets the line to type. */
function installSystemPackages() {
  const wanted = [
    {
      isThere: () => hasLibrary('libfuse.so.2'),
      packages: ['libfuse2t64', 'libfuse2'],
      why: 'libfuse.so.2, which mounts need',
    },
    { isThere: () => hasProgram('flock'), packages: ['util-linux'], why: 'flock, which guards the cache' },
    { isThere: () => hasProgram('getfattr'), packages: ['attr'], why: 'getfattr, which shows attributes' },
    ...(purpose === 'demo'
      ? []
      : [{ isThere: () => hasProgram('python3'), packages: ['python3'], why: 'python3, another reader of mounts' }]),
    ...(needsServers || needsClients
      ? [{ isThere: () => hasModule('ensurepip'), packages: ['python3-venv'], why: "python3's venv" }]
      : []),
    ...(purpose === 'demo'
      ? []
      : [
          { isThere: () => hasProgram('curl'), packages: ['curl'], why: 'curl' },
          { isThere: () => hasProgram('git'), packages: ['git'], why: 'git, which names the code of runs' },
          {
            isThere: () => hasProgram('openssl'),
            packages: ['openssl'],
            why: 'openssl, to compare with, and for keys',
          },
        ]),
    ...(purpose === 'test'
      ? [
          {
            isThere: () => hasProgram('fuse-overlayfs'),
            packages: ['fuse-overlayfs'],
            why: 'fuse-overlayfs, for users',
          },
        ]
      : []),
    ...(purpose === 'containers'
      ? [
          { isThere: () => hasProgram('dockerd'), packages: ['docker.io'], why: "docker's engine" },
          { isThere: () => hasProgram('iptables'), packages: ['iptables'], why: 'iptables, which it asks for' },
          { isThere: () => hasProgram('docker-registry'), packages: ['docker-registry'], why: 'a registry of images' },
          { isThere: () => hasProgram('podman'), packages: ['podman'], why: 'podman, the other engine' },
          { isThere: () => hasProgram('runc'), packages: ['runc'], why: 'runc, which podman is told to use' },
          { isThere: () => hasProgram('catatonit'), packages: ['catatonit'], why: 'catatonit, its --init' },
          { isThere: () => existsSync('/bin/busybox'), packages: ['busybox-static'], why: 'what is in the images' },
          {
            isThere: () => hasProgram('mmdebstrap') || existsSync(trainer),
            packages: ['mmdebstrap'],
            why: 'mmdebstrap, for the image with torch',
          },
        ]
      : []),
    ...(needsServers
      ? [{ isThere: () => hasProgram('gcc'), packages: ['build-essential'], why: 'a compiler, for the S3 servers' }]
      : []),
    ...(purpose === 'bench'
      ? [
          { isThere: () => hasProgram('fio'), packages: ['fio'], why: 'fio, which reads mounts to measure them' },
          { isThere: () => hasProgram('nginx'), packages: ['nginx-light', 'nginx'], why: 'nginx, to compare with' },
        ]
      : []),
  ].filter(({ isThere }) => !isThere())
  if (wanted.length === 0) return
  say(`missing here: ${wanted.map(({ why }) => why).join('; ')}`)
  if (!mayInstall()) fail(`run this as root, then try again:\n  ${installLine(wanted)}`)
  install(wanted)
}

/**
 * What bobbin-fuse is built with, and for the tests what they build it with. Who may not install it goes
 * on without: what needs bobbin-fuse is then skipped or served by fuse-native, and says so.
 */
function installNativeTools() {
  const compiler = [
    { isThere: () => hasProgram('cmake'), packages: ['cmake'], why: 'cmake' },
    { isThere: () => hasProgram('g++'), packages: ['g++'], why: 'a C++20 compiler, for bobbin-fuse' },
    { isThere: () => hasProgram('ninja') || hasProgram('make'), packages: ['ninja-build'], why: 'ninja or make' },
  ]
  const forTests = [
    { isThere: () => hasProgram('fusermount3'), packages: ['fuse3'], why: 'fusermount3, to mount without root' },
    { isThere: () => hasProgram('rsync'), packages: ['rsync'], why: 'rsync, which copies attributes too' },
  ]
  const forDeepTests = [
    { isThere: () => existsSync('/usr/include/gtest'), packages: ['libgtest-dev'], why: 'GoogleTest' },
    {
      isThere: () => hasProgram('clang++-14') || hasProgram('clang++'),
      packages: ['clang-14', 'clang'],
      why: 'clang++, for the fuzzers',
    },
    { isThere: hasFuzzer, packages: ['libclang-rt-14-dev', 'libclang-rt-dev'], why: 'libFuzzer' },
    { isThere: () => hasProgram('fio'), packages: ['fio'], why: 'fio, which verifies what it reads' },
    { isThere: () => hasProgram('go'), packages: ['golang-go'], why: "go, for its library's tests of filesystems" },
    { isThere: () => hasProgram('systemd-analyze'), packages: ['systemd'], why: 'systemd-analyze, to check the unit' },
  ]
  // To cross-build the package for the other processor, and to run what was built.
  const forArm64 = [
    { isThere: () => hasProgram('aarch64-linux-gnu-g++'), packages: ['g++-aarch64-linux-gnu'], why: 'g++ for arm64' },
    { isThere: hasQemu, packages: ['qemu-user'], why: 'qemu, to run what was built for arm64' },
  ]
  const wanted = [
    ...compiler,
    ...(purpose === 'test' || purpose === 'deep' ? forTests : []),
    ...(purpose === 'deep' ? forDeepTests : []),
    ...(purpose === 'deep' && process.arch === 'x64' ? forArm64 : []),
  ].filter(({ isThere }) => !isThere())
  if (wanted.length === 0) return
  say(`missing here, for bobbin-fuse: ${wanted.map(({ why }) => why).join('; ')}`)
  if (mayInstall()) return install(wanted)
  say(`  as root: ${installLine(wanted)}`)
  say('  going on without: what needs it is skipped, and mounts go through fuse-native where there is no bobbin-fuse')
}

function hasFuzzer() {
  const [name] = ['clang++-14', 'clang++'].filter(hasProgram)
  if (name === undefined) return false
  const { stdout = '' } = spawnSync(name, ['-print-runtime-dir'], { encoding: 'utf8' })
  const folders = [stdout.trim(), dirname(stdout.trim())].filter(existsSync)
  return folders.some(folder => readdirSync(folder, { recursive: true }).some(file => /clang_rt\.fuzzer/.test(file)))
}

function hasQemu() {
  return hasProgram('qemu-aarch64') || hasProgram('qemu-aarch64-static')
}

function mayInstall() {
  return process.getuid?.() === 0 && hasProgram('apt-get')
}

function installLine(wanted) {
  return `apt-get install -y ${namesOf(wanted).join(' ')}`
}

function namesOf(wanted) {
  return wanted.map(({ packages }) => packages.find(isInArchive) ?? packages.at(-1))
}

function install(wanted) {
  step(`apt-get install ${namesOf(wanted).join(' ')}`, () => {
    run('apt-get', ['update', '-qq'])
    // Which of two names a package has is known only now, if there was no list of packages before.
    run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...namesOf(wanted)], {
      DEBIAN_FRONTEND: 'noninteractive',
    })
  })
}

function isInArchive(name) {
  return spawnSync('apt-cache', ['show', name], { stdio: 'ignore' }).status === 0
}

function hasProgram(name) {
  return (process.env.PATH ?? '').split(':').some(folder => folder !== '' && existsSync(join(folder, name)))
}

function hasModule(name) {
  return spawnSync('python3', ['-c', `import ${name}`], { stdio: 'ignore' }).status === 0
}

function hasLibrary(name) {
  const folders = ['/lib', '/lib64', '/usr/lib', '/usr/lib64', '/usr/local/lib'].filter(existsSync)
  const below = folders.flatMap(folder =>
    readdirSync(folder)
      .filter(entry => /-linux-(gnu|musl)/.test(entry))
      .map(entry => join(folder, entry)),
  )
  return [...folders, ...below].some(folder => existsSync(join(folder, name)))
}

function installNodeModules() {
  const stamp = join(root, 'node_modules', '.bobbin-installed')
  if (mtime(stamp) >= mtime(join(root, 'package-lock.json'))) return
  step('npm ci', () => {
    run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'])
    // The plugins that .taprc leaves out (their loaders would start every worker thread slowly) are left out from here on.
    run('npx', ['tap', 'build'], {}, 'ignore')
    writeFileSync(stamp, '')
  })
}

function build() {
  const stamp = join(root, 'dist', '.built')
  const sources = ['daemon', 'loader', 'cli', 'bench', 'test'].map(folder => newest(join(root, folder)))
  if (mtime(stamp) >= Math.max(...sources, mtime(join(root, 'tsconfig.json')), mtime(join(root, 'package.json'))))
    return
  step('build', () => {
    run('npm', ['run', '--silent', 'build'])
    writeFileSync(stamp, '')
  })
}

/**
 * With cmake and a compiler, build/native is kept as new as its sources. The demo keeps up what was built
 * before and builds nothing new; without it and without a prebuilt package it mounts through fuse-native.
 */
function buildNative() {
  if (process.platform !== 'linux') return
  const isThere = existsSync(bobbinFuse)
  if (!wantsNative && !isThere) {
    const name = `bobbin-fuse-linux-${process.arch}`
    if (!existsSync(join(root, 'node_modules', name, 'bin', 'bobbin-fuse')))
      say(`no ${name} is installed or built, so mounts go through fuse-native, slower (npm run build:native)`)
    return
  }
  const stamp = join(root, 'build', 'native', '.built')
  const sources = newest(join(root, 'native'), /\.(cpp|hpp|cmake)$|CMakeLists\.txt$/)
  if (isThere && mtime(stamp) >= Math.max(sources, mtime(join(root, 'package.json')))) return
  if (!hasProgram('cmake') || !hasProgram('g++')) {
    if (isThere) say('build/native/bobbin-fuse may be older than its sources, and there is no compiler here')
    return
  }
  step('build bobbin-fuse', () => {
    run('npm', ['run', '--silent', 'build:native'], {}, 'pipe')
    writeFileSync(stamp, '')
  })
}

/** `npx bobbin` in this checkout. */
function linkCommand() {
  const link = join(root, 'node_modules', '.bin', 'bobbin')
  if (!existsSync(link)) symlinkSync('../../dist/cli/main.js', link)
}

function installServers() {
  const bin = join(parts, 'bin')
  const servers = { versitygw: VERSITYGW, ...(purpose !== 'containers' && { minio: MINIO }) }
  for (const [name, source] of Object.entries(servers)) {
    if (existsSync(join(bin, name))) continue
    requireGo()
    step(`go install ${name} (takes minutes)`, () =>
      run('go', ['install', source], { GOBIN: bin, GOFLAGS: '-modcacherw', GOTOOLCHAIN: 'auto' }),
    )
  }
  const venv = join(parts, 'quilt3')
  if (existsSync(join(venv, '.installed')) || existsSync(join(venv, 'bin', 'quilt3'))) return
  step(`pip install ${QUILT3}`, () => {
    run('python3', ['-m', 'venv', venv])
    run(join(venv, 'bin', 'pip'), ['install', '--quiet', '--disable-pip-version-check', QUILT3])
    writeFileSync(join(venv, '.installed'), '')
  })
}

/** Gigabytes, most of it torch; PyPI has no smaller one for this processor. */
function installClients() {
  const venv = join(parts, 'loader')
  const list = join(root, '.ci', purpose === 'bench' ? 'bench-requirements.txt' : 'clients-requirements.txt')
  const stamp = join(venv, `.${purpose}-installed`)
  if (mtime(stamp) >= mtime(list)) return
  step('pip install torch, Ray and other clients (takes minutes)', () => {
    if (!existsSync(join(venv, 'bin', 'pip'))) run('python3', ['-m', 'venv', venv])
    run(join(venv, 'bin', 'pip'), ['install', '--quiet', '--disable-pip-version-check', '-r', list])
    writeFileSync(stamp, '')
  })
}

/** Of the image that the tutorial trains in. */
function makeTrainer() {
  const script = join(root, '.ci', 'trainer-image.sh')
  if (mtime(trainer) >= mtime(script)) return
  step("unpack Debian's torch (takes a minute)", () => run(script, [trainer]))
}

/** Since 1.21, go fetches the newer one that a module asks for by itself. Debian 12 has 1.19. */
function requireGo() {
  const isNewEnough = text => {
    const [, major, minor] = /(\d+)\.(\d+)/.exec(text) ?? []
    return Number(major) > 1 || (Number(major) === 1 && Number(minor) >= 21)
  }
  const said = (command, ...args) => spawnSync(command, args, { cwd: root, encoding: 'utf8' }).stdout ?? ''
  const version = hasProgram('go') ? said('go', 'env', 'GOVERSION').trim() : ''
  if (isNewEnough(version)) return
  const [, candidate = ''] = /Candidate: (?:\d+:)?(\S+)/.exec(said('apt-cache', 'policy', 'golang-go')) ?? []
  if (process.getuid?.() === 0 && version === '' && isNewEnough(candidate)) {
    step('apt-get install golang-go', () =>
      run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', 'golang-go'], {
        DEBIAN_FRONTEND: 'noninteractive',
      }),
    )
    return
  }
  fail(
    `the S3 servers of the interop suite are built with Go 1.21 or newer, and here is ${version || 'none'}: ` +
      'install it (apt-get install golang-go where that is new enough, else from go.dev), then try again',
  )
}

/** Milliseconds; 0 for what is not there. */
function mtime(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0
}

function newest(folder, names = /\.(ts|json)$/) {
  if (!existsSync(folder)) return 0
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && names.test(entry.name))
    .reduce((latest, entry) => Math.max(latest, mtime(join(entry.parentPath, entry.name))), 0)
}

function step(what, work) {
  const start = Date.now()
  say(`${what} …`)
  work()
  say(`${what}: ${((Date.now() - start) / 1000).toFixed(1)} s`)
}

function run(command, args, env = {}, stdout = 'inherit') {
  const {
    status,
    error,
    stdout: said,
  } = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', stdout, 'inherit'],
    env: { ...process.env, ...env },
  })
  if (status !== 0 && said) process.stderr.write(said)
  if (status !== 0) fail(`${command} ${args.join(' ')} failed${error ? `: ${error.message}` : ''}`)
}

function say(text) {
  process.stderr.write(`setup: ${text}\n`)
}

function fail(text) {
  say(text)
  process.exit(1)
}
