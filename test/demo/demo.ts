/**
 * `npm run demo`: the main job, on a sample that this repository holds. Every command is real, and a
 * step that does not do what it says ends the demo with an error.
 */
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { cannotMount } from '../support/can-mount.js'
import { SAMPLE_TOP_HASH, writeSample } from './sample.js'
import { Stage } from './stage.js'

const MEAN = `awk -F, 'NR > 1 { sum += $3; n++ } END { printf "mean of temp_max over %d days: %.2f\\n", n, sum / n }'`

/** pino's. */
const WARNING = 40

const stage = new Stage()
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    stage.clear()
    process.exit(signal === 'SIGINT' ? 130 : 143)
  })
}

let exitCode = 0
try {
  exitCode = await play()
} catch (error) {
  process.stderr.write(`\nthe demo failed: ${error instanceof Error ? error.message : error}\n`)
  exitCode = 1
}
stage.clear()
if (exitCode === 0) process.stdout.write('\nEverything did what it should; nothing is left behind.\n')
process.exit(exitCode)

async function play(): Promise<number> {
  process.stdout.write('Bobbin mounts one revision of a data package, named by its hash, and checks every byte.\n')
  const registry = join(stage.folder, 'registry')
  const sample = await writeSample(registry)
  require(sample.topHash === SAMPLE_TOP_HASH, `the sample hashes to ${sample.topHash} instead of ${SAMPLE_TOP_HASH}`)
  const prefix = sample.topHash.slice(0, 6)
  const reference = `registry/quilt/altair@${prefix}`.replace(/^/, './')

  stage.heading('A package is named by its top hash; six characters are enough')
  const resolved = await stage.bobbin(['resolve', reference])
  require(resolved.stdout.trim() === SAMPLE_TOP_HASH, 'the prefix resolved to something else')
  await stage.bobbin(['ls', reference, '-R', '-l'])
  await stage.bobbin(['meta', reference, 'weather/seattle-weather.csv'])

  const missing = cannotMount()
  if (missing !== false) {
    stage.heading('Mounting is not possible here')
    await stage.bobbin(['doctor'], { status: 14 })
    stage.say(missing)
    await integrity(registry, reference)
    return 14
  }
  await mounted(reference)
  await healing(reference)
  await refusing(registry)
  await integrity(registry, reference)
  return 0
}

async function mounted(reference: string): Promise<void> {
  stage.heading('Mount it: files are fetched when they are opened, and checked before anybody sees a byte')
  await stage.bobbin(['mount', reference, './data', '--mkdir'])
  await stage.shell('ls -l data data/weather')
  const mean = await stage.shell(`cat data/weather/seattle-weather.csv | ${MEAN}`)
  require(mean.stdout.includes('over 1461 days: 16.44'), 'the mean is not that of the data')
  if (hasProgram('getfattr')) {
    await stage.shell("getfattr --absolute-names -d data/weather/seattle-weather.csv data | grep -v '^$'")
  }
  const write = await stage.shell('echo x > data/weather/seattle-weather.csv', { status: readOnlyStatus() })
  require(/Read-only/.test(write.stderr), 'writing was not refused')
  await stage.bobbin(['status'])
}

/** The shell's own exit code for a redirection that fails: 1 in bash, 2 in dash. */
function readOnlyStatus(): number {
  return existsSync('/bin/dash') ? 2 : 1
}

async function healing(reference: string): Promise<void> {
  stage.heading('Change one byte of a file in the cache: the next open notices, and fetches it again')
  await stage.bobbin(['umount', './data'])
  const object = cachedObject('date,precipitation')
  changeByte(object, 1000)
  stage.say(`(one byte of ${object.replace(stage.folder, '/demo')} is changed)`)
  // A new mount, so that the kernel's copy of the file is not what answers.
  await stage.bobbin(['mount', reference, './data'], { isQuiet: true })
  const mean = await stage.shell(`cat data/weather/seattle-weather.csv | ${MEAN}`)
  require(mean.stdout.includes('16.44'), 'the changed byte was shown')
  const warnings = stage.log
    .split('\n')
    .filter(line => line.startsWith('{'))
    .map(line => JSON.parse(line) as { level: number; msg: string })
    .filter(({ level }) => level >= WARNING)
  require(warnings.length > 0, 'the log says nothing of the changed byte')
  for (const { msg } of warnings) stage.say(`daemon.log: ${msg}`)
}

async function refusing(registry: string): Promise<void> {
  stage.heading('Change one byte in a copy of the registry: a plain copy notices nothing, Bobbin gives an error')
  const copy = join(stage.folder, 'copy')
  cpSync(registry, copy, { recursive: true })
  repoint(copy, registry)
  changeByte(join(copy, 'quilt/altair/labor/us-employment.csv'), 500)
  await stage.shell('cat copy/quilt/altair/labor/us-employment.csv > plain.csv && wc -l plain.csv')
  await stage.bobbin(['mount', './copy/quilt/altair', './copied', '--mkdir'], { isQuiet: true })
  const read = await stage.shell('cat copied/labor/us-employment.csv', { status: 1 })
  require(/Input\/output error/.test(read.stderr), 'the changed file was shown')
  await stage.shell('tail -n 1 copied/energy/iowa-electricity.csv')
  stage.say('(that file only: the others go on)')
  const cat = await stage.bobbin(['cat', './copy/quilt/altair', 'labor/us-employment.csv'], { status: 13 })
  require(cat.stdout === '', 'bytes were shown before they were checked')
  await stage.bobbin(['umount', './copied'], { isQuiet: true })
  await stage.bobbin(['umount', './data'])
}

async function integrity(registry: string, reference: string): Promise<void> {
  stage.heading('Change one byte of a manifest: nothing of it is used')
  const copy = join(stage.folder, 'forged')
  cpSync(registry, copy, { recursive: true })
  const manifest = join(copy, '.quilt/packages', SAMPLE_TOP_HASH)
  writeFileSync(manifest, readFileSync(manifest, 'utf8').replace('NOAA', 'NOAB'))
  await stage.bobbin(['ls', './forged/quilt/altair'], { status: 13 })

  stage.heading('Without a mount: verified copies, and a check of any folder')
  await stage.bobbin(['install', reference, './installed'])
  await stage.bobbin(['verify', reference, './installed'])
  changeByte(join(stage.folder, 'installed/climate/global-temp.csv'), 100)
  await stage.bobbin(['verify', reference, './installed'], { status: 13 })
}

function cachedObject(begins: string): string {
  const folder = join(stage.cache, 'objects')
  const object = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => join(entry.parentPath, entry.name))
    .find(path => readFileSync(path, 'utf8').startsWith(begins))
  if (object === undefined) throw new Error('the file is not in the cache')
  return object
}

function changeByte(path: string, at: number): void {
  const bytes = readFileSync(path)
  bytes[at]! ^= 1
  // Root may write to a file of mode 0440; whoever else owns it has to be allowed to first.
  writeFileSync(path, bytes, { flag: 'r+' })
}

/** The copy's manifest points into the copy; physical keys are not covered by the top hash. */
function repoint(copy: string, registry: string): void {
  const path = join(copy, '.quilt/packages', SAMPLE_TOP_HASH)
  writeFileSync(path, readFileSync(path, 'utf8').replaceAll(registry, copy))
}

function hasProgram(name: string): boolean {
  return (process.env.PATH ?? '').split(':').some(folder => folder !== '' && existsSync(join(folder, name)))
}

function require(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(what)
}
