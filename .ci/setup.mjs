/**
 * Sets this checkout up for one of the README's commands: system packages, node_modules, the build,
 * and for the interop suite the real parts. Plain Node.js: it runs before anything is installed.
 *
 *   node .ci/setup.mjs --for demo | test | interop | bench
 *
 * Each step runs only when something is missing or older than its sources.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const purposes = ['demo', 'test', 'interop', 'bench']
const purpose = process.argv[process.argv.indexOf('--for') + 1] ?? ''
if (!purposes.includes(purpose)) fail(`usage: node .ci/setup.mjs --for ${purposes.join(' | ')}`)

const VERSITYGW = 'github.com/versity/versitygw/cmd/versitygw@v1.8.0'
const MINIO = 'github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c'
const QUILT3 = 'quilt3==8.0.0'
const parts = process.env.BOBBIN_PARTS ?? join(root, '.parts')
const needsParts = purpose === 'interop' || purpose === 'bench'

checkNode()
installSystemPackages()
if (!needsParts) checkFuse()
installNodeModules()
build()
linkCommand()
if (needsParts) installParts()

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
    ...(needsParts
      ? [
          { isThere: () => hasModule('ensurepip'), packages: ['python3-venv'], why: "python3's venv, for quilt3" },
          { isThere: () => hasProgram('openssl'), packages: ['openssl'], why: 'openssl, to compare with' },
          { isThere: () => hasProgram('git'), packages: ['git'], why: 'git' },
          { isThere: () => hasProgram('gcc'), packages: ['build-essential'], why: 'a compiler, for the S3 servers' },
        ]
      : []),
    ...(purpose === 'bench'
      ? [{ isThere: () => hasProgram('fio'), packages: ['fio'], why: 'fio, which reads mounts to measure them' }]
      : []),
  ].filter(({ isThere }) => !isThere())
  if (wanted.length === 0) return
  const names = wanted.map(({ packages }) => packages.find(isInArchive) ?? packages.at(-1))
  say(`missing here: ${wanted.map(({ why }) => why).join('; ')}`)
  const line = `apt-get install -y ${names.join(' ')}`
  if (process.getuid?.() !== 0 || !hasProgram('apt-get')) fail(`run this as root, then try again:\n  ${line}`)
  step(`apt-get install ${names.join(' ')}`, () => {
    run('apt-get', ['update', '-qq'])
    // Which of two names a library has is known only now, if there was no list of packages before.
    const found = wanted.map(({ packages }) => packages.find(isInArchive) ?? packages.at(-1))
    run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...found], { DEBIAN_FRONTEND: 'noninteractive' })
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

/** `npx bobbin` in this checkout. */
function linkCommand() {
  const link = join(root, 'node_modules', '.bin', 'bobbin')
  if (!existsSync(link)) symlinkSync('../../dist/cli/main.js', link)
}

function installParts() {
  const bin = join(parts, 'bin')
  for (const [name, source] of Object.entries({ versitygw: VERSITYGW, minio: MINIO })) {
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

function newest(folder) {
  if (!existsSync(folder)) return 0
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && /\.(ts|json)$/.test(entry.name))
    .reduce((latest, entry) => Math.max(latest, mtime(join(entry.parentPath, entry.name))), 0)
}

function step(what, work) {
  const start = Date.now()
  say(`${what} …`)
  work()
  say(`${what}: ${((Date.now() - start) / 1000).toFixed(1)} s`)
}

function run(command, args, env = {}, stdout = 'inherit') {
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', stdout, 'inherit'],
    env: { ...process.env, ...env },
  })
  if (status !== 0) fail(`${command} ${args.join(' ')} failed${error ? `: ${error.message}` : ''}`)
}

function say(text) {
  process.stderr.write(`setup: ${text}\n`)
}

function fail(text) {
  say(text)
  process.exit(1)
}
