/** What the record of a bare process says of the machine, of Python, and of code that Python finds elsewhere. */
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parseGpus } from '../../cli/run/machine.js'
import { findInterpreter } from '../../cli/run/python.js'
import { hashTree } from '../../cli/run/source-trees.js'
import { AS_USERS_DO, runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'
import { ALLOW_HOST, factsOf, type RunAnswer, Runs, statementOf } from '../support/runs.js'
import { endUnlessMounts } from '../support/skips.js'

t.setTimeout(300_000)
endUnlessMounts(t)

const folder = testFolder(t)
const runs = new Runs(folder)
t.teardown(() => runs.cli.try('stop', '--force'))
await runs.commit({ 'train.py': 'print("hi")', '.gitignore': 'build\n' })

const write = (path: string, text: string, mode = 0o644) => {
  mkdirSync(join(path, '..'), { recursive: true })
  writeFileSync(path, text, { mode })
}

/** A virtual environment with two packages: one from an index, and one that is a link to its sources. */
const venv = join(folder, 'venv')
execFileSync('python3', ['-m', 'venv', '--without-pip', venv])
const [version] = readdirSync(join(venv, 'lib'))
const site = join(venv, 'lib', version!, 'site-packages')
const sources = join(folder, 'sources')
write(join(site, 'demo-1.2.dist-info/METADATA'), 'Metadata-Version: 2.1\nName: demo\nVersion: 1.2\n')
write(join(site, 'own-0.1.dist-info/METADATA'), 'Metadata-Version: 2.1\nName: own\nVersion: 0.1\n')
write(
  join(site, 'own-0.1.dist-info/direct_url.json'),
  JSON.stringify({ url: `file://${sources}`, dir_info: { editable: true } }),
)
write(join(site, 'secret-2.dist-info/METADATA'), 'Metadata-Version: 2.1\nName: secret\nVersion: 2\n')
write(
  join(site, 'secret-2.dist-info/direct_url.json'),
  JSON.stringify({ url: 'https://user:token@host.invalid/repo.git', vcs_info: { vcs: 'git', commit_id: 'abc' } }),
)
write(join(sources, 'own.py'), 'x = 1')
const git = (dir: string, ...args: string[]) =>
  execFileSync('git', ['-C', dir, '-c', 'user.name=T', '-c', 'user.email=t@t.invalid', ...args], { encoding: 'utf8' })
git(sources, 'init', '--quiet')
git(sources, 'add', '--all')
git(sources, 'commit', '--quiet', '-m', 'sources')
writeFileSync(join(sources, 'own.py'), 'x = 2')

async function runWith(env: NodeJS.ProcessEnv, ...command: string[]): Promise<RunAnswer> {
  const [program, ...before] = AS_USERS_DO
  const line = ['-C', runs.code, program!, ...before, process.execPath, bobbinPath]
  const environment = { ...process.env, BOBBIN_STATE: runs.state, BOBBIN_CACHE: runs.cli.cacheDir, ...env }
  const args = [...line, 'run', '--host', '--no-loader', '--json', '--', ...command]
  const { stdout, stderr } = await runProgram('env', args, { env: environment })
  if (stdout === '') throw new Error(stderr)
  return JSON.parse(stdout) as RunAnswer
}

t.test('a record has Python, its packages, and the hardware (S123)', async t => {
  const python = join(venv, 'bin/python')
  const facts = factsOf(await runWith({}, python, 'train.py'))
  t.match(facts.python, { executable: python, foundBy: 'command', implementation: 'CPython', prefix: venv })
  t.equal(
    facts.python!.version,
    execFileSync(python, ['-c', 'import platform; print(platform.python_version())'], { encoding: 'utf8' }).trim(),
  )
  t.same(facts.python!.packages, [
    { name: 'demo', version: '1.2' },
    { name: 'own', version: '0.1', url: `file://${sources}` },
    { name: 'secret', version: '2', url: 'https://host.invalid/repo.git', commit: 'abc' },
  ])
  t.match(facts.machine, { cpus: Number, cpu: String, memoryBytes: Number, system: /^linux / })
  const smi = spawnSync('nvidia-smi', ['--query-gpu=name', '--format=csv,noheader'], { encoding: 'utf8' })
  const names = smi.status === 0 ? smi.stdout.trim().split('\n') : []
  const isThere = names.length > 0 || existsSync('/proc/driver/nvidia/version')
  t.same(
    facts.machine!.gpus.map(({ name }) => name),
    isThere ? names : [],
    'as this machine has them',
  )
  t.equal(facts.machine!.driver !== null, isThere)
  t.equal(facts.sourceTrees?.length, 1, 'the sources of the package that is a link to them')
})

t.test('findInterpreter knows the Python of a command, of a script, and of the PATH (S123)', async t => {
  const python = join(venv, 'bin/python')
  const scripts = join(folder, 'scripts')
  const place = { cwd: folder, env: { PATH: `${scripts}:${join(venv, 'bin')}:/usr/bin:/bin` } }
  const script = (name: string, text: string) => write(join(scripts, name), text, 0o755)
  script('torchrun', `#!${python}\nimport torch`)
  script('by-env', '#!/usr/bin/env -S PYTHONUNBUFFERED=1 python -u\n')
  script('long', `#!/bin/sh\n'''exec' "${python}" "$0" "$@"\n' '''\n`)
  script('shell', '#!/bin/bash\npython train.py')
  symlinkSync(python, join(scripts, 'python3.99'))
  t.same(findInterpreter('./venv/bin/python', place), { executable: python, foundBy: 'command' })
  t.same(findInterpreter('python3.99', place), { executable: join(scripts, 'python3.99'), foundBy: 'command' })
  for (const name of ['torchrun', 'by-env', 'long', './scripts/torchrun'])
    t.same(findInterpreter(name, place), { executable: python, foundBy: 'script' }, name)
  for (const name of ['shell', 'bash', 'no-such-program'])
    t.same(findInterpreter(name, place), { executable: python, foundBy: 'path' }, name)
  t.equal(findInterpreter('sh', { cwd: folder, env: { PATH: scripts } }), undefined)
})

t.test('code outside of the repository that Python finds has a hash, and its diff (S123)', async t => {
  const plain = join(folder, 'plain')
  write(join(plain, 'helper.py'), 'y = 1')
  write(join(plain, '__pycache__/helper.pyc'), 'compiled')
  const zip = join(folder, 'more.zip')
  writeFileSync(zip, 'an archive')
  write(join(runs.code, 'build/made.py'), 'z = 1')
  const places = [plain, '.', zip, join(folder, 'nowhere'), join(runs.code, 'build'), join(sources, '.'), plain]
  const run = await runWith({ PYTHONPATH: places.join(':') }, join(venv, 'bin/python'), 'train.py')
  const trees = factsOf(run).sourceTrees!
  t.same(
    trees.map(({ path, from }) => [path, from]),
    [
      [plain, 'PYTHONPATH'],
      [zip, 'PYTHONPATH'],
      [join(runs.code, 'build'), 'PYTHONPATH'],
      [sources, 'PYTHONPATH'],
    ],
    "each once; what is the run's own code, or not there, is left out",
  )
  const [first, archive, built, own] = trees
  t.equal(first!.sha256, await hashTree(plain))
  t.match(archive, { sha256: /^[0-9a-f]{64}$/ })
  t.equal(built!.sha256, await hashTree(join(runs.code, 'build')), 'what git ignores is in no tree of it')
  t.match(own, { code: { commit: git(sources, 'rev-parse', 'HEAD').trim(), isDirty: true }, diff: 'tree-3.diff' })
  t.match(readFileSync(join(run.record, 'tree-3.diff'), 'utf8'), /-x = 1[\s\S]*\+x = 2/)
  const imports = statementOf(run).predicate.buildDefinition.resolvedDependencies.filter(
    (one: { name: string }) => one.name === 'import',
  )
  t.match(imports, [{ digest: { bobbinTreeSha256: first!.sha256 } }, {}, {}, { digest: { gitTree: own!.code!.tree } }])
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
  writeFileSync(join(run.record, 'tree-3.diff'), 'something else')
  const { status, stdout } = await runs.bobbin('record', 'verify', run.runId)
  t.equal(status, 13)
  t.match(stdout, /tree-3\.diff is missing or is not what the statement says/)
})

t.test('hashTree changes with bytes, names, modes and links, and with nothing else', async t => {
  const tree = join(folder, 'tree')
  write(join(tree, 'a/b.py'), '1')
  const first = await hashTree(tree)
  write(join(tree, 'a/b.pyc'), 'compiled')
  mkdirSync(join(tree, 'empty'))
  t.equal(await hashTree(tree), first)
  const seen = new Set([first])
  const changes = [
    () => writeFileSync(join(tree, 'a/b.py'), '2'),
    () => write(join(tree, 'c.py'), '2'),
    () => chmodSync(join(tree, 'c.py'), 0o755),
    () => symlinkSync('a/b.py', join(tree, 'link')),
  ]
  for (const change of changes) {
    change()
    seen.add(await hashTree(tree))
  }
  t.equal(seen.size, 5)
})

t.test('reproduce says what of the surroundings is another one', async t => {
  const run = await runWith({}, join(venv, 'bin/python'), 'train.py')
  write(join(site, 'demo-1.2.dist-info/METADATA'), 'Metadata-Version: 2.1\nName: demo\nVersion: 1.3\n')
  writeFileSync(join(sources, 'own.py'), 'x = 3')
  const { status, stdout, stderr } = await runs.bobbin('reproduce', run.runId, ...ALLOW_HOST, '--json')
  t.equal(status, 0, stderr)
  t.match(JSON.parse(stdout), {
    equal: true,
    surroundings: [
      /^package demo: 1\.3, the record has 1\.2$/,
      /^code in .*sources: [0-9a-f]{40}, the record has [0-9a-f]{40}$/,
    ],
  })
})

t.test("a Python that does not say what it has is the record's problem, not the run's", async t => {
  const broken = join(folder, 'broken/python')
  write(broken, '#!/bin/sh\n[ "$1" = -I ] && { echo "no such luck" >&2; exit 3; }\nexit 0\n', 0o755)
  const run = await runWith({}, broken)
  t.equal(run.exitCode, 0)
  t.match(factsOf(run).problems, [/packages of .*broken\/python are not in the record: no such luck/])
  t.equal(factsOf(run).python, undefined)
})

t.test('parseGpus reads the rows of nvidia-smi', async t => {
  const text = 'NVIDIA H200, GPU-1b2c, 143771, 570.86.15\nNVIDIA GH200, GPU-3d, [N/A], 570.86.15\n'
  t.same(parseGpus(text), {
    gpus: [
      { name: 'NVIDIA H200', uuid: 'GPU-1b2c', memoryBytes: 143771 * 2 ** 20 },
      { name: 'NVIDIA GH200', uuid: 'GPU-3d' },
    ],
    driver: '570.86.15',
  })
  t.same(parseGpus('No devices were found\n'), { gpus: [], driver: null })
})
