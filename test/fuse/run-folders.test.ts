/** Folders that are mountpoints of runs: the run takes away what it made, and nothing of a user's. */
import { chmodSync, chownSync, existsSync, lstatSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { makeFolders, removeFolders } from '../../cli/run/made-folders.js'
import { mountsBelow, testFolder, until } from '../support/daemon.js'
import { factsOf, Runs, started } from '../support/runs.js'
import { writeSamples } from '../support/samples.js'
import { endUnlessMounts } from '../support/skips.js'

t.setTimeout(300_000)
endUnlessMounts(t)

const folder = testFolder(t)
const runs = new Runs(folder)
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 3)
mkdirSync(runs.code)
const runAt = (dir: string, ...command: string[]) => [
  ...['run', '--json', '--host', '--no-code', '--no-loader', '--mount', `${written.reference}:${dir}`],
  ...['--', ...command],
]

/** A folder as a user may have it: with a mode that mkdir gives to nobody, and another owner where that can be. */
function ownFolder(name: string): string {
  const path = join(folder, name)
  mkdirSync(path)
  if (process.getuid?.() === 0) chownSync(path, 1234, 1234)
  chmodSync(path, 0o2770)
  return path
}

function lookAt(path: string) {
  const { ino, mode, uid, gid } = lstatSync(path)
  return { ino, mode, uid, gid }
}

t.test('a folder that the user made stays, with its mode and owner, and is no folder of the record (S118)', async t => {
  const own = ownFolder('own')
  const before = lookAt(own)
  const { stdout, status, stderr } = await runs.bobbin(...runAt(own, 'ls', own))
  t.equal(status, 0, stderr)
  t.same(lookAt(own), before)
  t.equal(factsOf(JSON.parse(stdout)).madeFolders, undefined)
  const failed = await runs.bobbin(...runAt(own, '/no/such/program'))
  t.equal(failed.status, 2)
  t.same(lookAt(own), before, 'also when the command cannot be started')
})

t.test('the folders that a run made go with it, those above the mountpoint too (S118)', async t => {
  const parent = ownFolder('parent')
  const before = lookAt(parent)
  const { status } = await runs.bobbin(...runAt(join(parent, 'a/b/c'), 'true'))
  t.equal(status, 0)
  t.notOk(existsSync(join(parent, 'a')))
  t.same(lookAt(parent), before)
  const none = `file://${join(folder, 'registry')}/no/such`
  const failed = await runs.bobbin('run', '--host', '--no-code', '--mount', `${none}:${join(parent, 'x')}`, 'true')
  t.equal(failed.status, 10)
  t.notOk(existsSync(join(parent, 'x')), 'a mount that fails leaves no folder')
})

t.test("a run that was killed and is cleaned up later takes no folder of a user's (S118)", async t => {
  const own = ownFolder('killed-own')
  const made = join(folder, 'killed-made')
  const before = lookAt(own)
  for (const dir of [own, made]) {
    const child = started(runs.start(...runAt(dir, 'sh', '-c', 'echo ready; exec sleep 500').slice(2)))
    await until('it runs', () => child.stderr().includes('ready'), 30_000)
    child.process.kill('SIGKILL')
    await child.ended
  }
  t.equal(mountsBelow(folder).length, 2)
  t.equal((await runs.cli.try('runs')).status, 0)
  t.same(mountsBelow(folder), [])
  t.same(lookAt(own), before)
  t.notOk(existsSync(made))
})

t.test('removeFolders leaves a folder that was changed, made again, or is in use (S118)', async t => {
  const [plain, changed, again, full] = ['plain', 'changed', 'again', 'full'].map(name => join(folder, name, 'data'))
  const made = [plain!, changed!, again!, full!].map(makeFolders)
  t.same(
    made[0]!.map(({ path }) => path),
    [join(folder, 'plain'), plain],
  )
  t.same(makeFolders(plain!), [], 'what is there was made by somebody else')
  chmodSync(changed!, 0o700)
  rmdirSync(again!)
  // So that the file system does not give the new folder the same number.
  writeFileSync(join(folder, 'again', 'between'), '')
  mkdirSync(again!)
  writeFileSync(join(full!, 'a file'), '')
  for (const folders of made) removeFolders(folders)
  t.same(
    [plain, changed, again, full].map(path => existsSync(path!)),
    [false, true, true, true],
  )
  t.notOk(existsSync(join(folder, 'plain')))
  t.throws(() => makeFolders(join(full!, 'a file', 'below')), { code: 'LOCAL_IO' })
})
