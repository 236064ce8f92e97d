/**
 * `npm run demo`: the main job, on a sample that this repository holds. Every command is real, and a
 * step that does not do what it says ends the demo with an error. Where nothing can be mounted it
 * says why, plays the rest, and ends with 14.
 */
import { chmodSync, cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { SAMPLE_TOP_HASH, writeSample } from './sample.js'
import { Stage } from './stage.js'

const EXIT_VERIFICATION = 13
const EXIT_NO_FUSE = 14

const REFERENCE = `./registry/quilt/altair@${SAMPLE_TOP_HASH.slice(0, 6)}`
const WEATHER = 'weather/seattle-weather.csv'
const EMPLOYMENT = 'labor/us-employment.csv'
const MEAN = `awk -F, 'NR > 1 { sum += $3; n++ } END { printf "mean of temp_max over %d days: %.2f\\n", n, sum / n }'`

class Interrupted extends Error {
  constructor(readonly exitCode: number) {
    super('interrupted')
  }
}

const stage = new Stage()
for (const [signal, exitCode] of [
  ['SIGHUP', 129],
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.on(signal, () => stage.interrupt(new Interrupted(exitCode)))
}
// `npm run demo | head`: the reader has seen enough, and there is still something to clear up.
process.stdout.on('error', () => stage.interrupt(new Interrupted(1)))

process.exitCode = await finish(await play().catch(failure))
// A command that hangs is given up, and must not hold up the end.
process.exit()

async function play(): Promise<number> {
  process.stdout.write('Bobbin mounts one revision of a data package, named by its hash, and checks every byte.\n')
  const sample = await writeSample(join(stage.folder, 'registry'))
  require(sample.topHash === SAMPLE_TOP_HASH, `the sample hashes to ${sample.topHash} instead of ${SAMPLE_TOP_HASH}`)

  await name()
  const isMounted = await mount()
  if (isMounted) await heal()
  await refuse(isMounted)
  await forge()
  await install()
  if (isMounted) await unmount()
  return isMounted ? 0 : EXIT_NO_FUSE
}

async function name(): Promise<void> {
  stage.heading('A package is named by its top hash; six characters are enough')
  const { stdout } = await stage.bobbin(['resolve', REFERENCE])
  require(stdout.trim() === SAMPLE_TOP_HASH, 'the prefix resolved to something else')
  await stage.bobbin(['ls', REFERENCE, '-R', '-l'])
  await stage.bobbin(['meta', REFERENCE, WEATHER], { says: /"source":"NOAA"/ })
}

/** False where nothing can be mounted, which has been said then. */
async function mount(): Promise<boolean> {
  stage.heading('Mount it: files are fetched when they are opened, and checked before anybody sees a byte')
  const { status } = await stage.bobbin(['mount', REFERENCE, './data', '--mkdir'], { statuses: [0, EXIT_NO_FUSE] })
  if (status === EXIT_NO_FUSE) {
    await stage.bobbin(['doctor'], { statuses: [0, EXIT_NO_FUSE] })
    stage.say('(nothing can be mounted here; the rest goes on without)')
    return false
  }
  await stage.shell('ls -C data; ls -l data/weather', { says: /48219 .* seattle-weather\.csv/ })
  await stage.shell(`head -n 3 data/${WEATHER}`, { says: /2012-01-01,0\.0,12\.8/ })
  await stage.shell(`${MEAN} data/${WEATHER}`, { says: /over 1461 days: 16\.44/ })
  await attributes()
  const write = await stage.shell(`touch data/${WEATHER}`, { statuses: [1] })
  require(/Read-only file system/.test(write.stderr), 'writing was not refused')
  await stage.bobbin(['status'], { says: /quilt\/altair@/ })
  return true
}

async function attributes(): Promise<void> {
  if (hasProgram('getfattr')) {
    await stage.shell(`getfattr -n user.quilt.hash data/${WEATHER} && getfattr -n user.quilt.top_hash data`, {
      says: new RegExp(`top_hash="${SAMPLE_TOP_HASH}"`),
    })
  } else if (hasProgram('python3')) {
    const script = "import os, sys; n = 'user.quilt.hash'; print(n, os.getxattr(sys.argv[1], n).decode())"
    await stage.shell(`python3 -c "${script}" data/${WEATHER}`, { says: /user\.quilt\.hash / })
  } else {
    stage.say('(neither getfattr nor python3 is here to show the extended attributes user.quilt.*)')
  }
}

async function heal(): Promise<void> {
  stage.heading('Change one byte of a file in the cache: the next open notices, and fetches it again')
  // The kernel has its own copy of what it read, which was right. A new mount has to open the file.
  await stage.bobbin(['umount', './data'])
  const object = cachedObject('date,precipitation')
  changeByte(object, 1000)
  await stage.bobbin(['mount', REFERENCE, './data'])
  await stage.shell(`cmp data/${WEATHER} registry/quilt/altair/${WEATHER} && echo the same`, { says: /the same/ })
  stage.warnings(/does not hash to its name/)
  const original = readFileSync(join(stage.folder, 'registry/quilt/altair', WEATHER))
  require(readFileSync(object).equals(original), 'the object in the cache is still the changed one')
}

async function refuse(isMounted: boolean): Promise<void> {
  stage.heading('Change one byte in a copy of the registry: a plain copy notices nothing, Bobbin gives an error')
  // The same top hash: it does not cover where the bytes are.
  await writeSample(join(stage.folder, 'copy'))
  changeByte(`copy/quilt/altair/${EMPLOYMENT}`, 500)
  await stage.shell(`cp copy/quilt/altair/${EMPLOYMENT} plain.csv && wc -l plain.csv`, { says: /121/ })
  const cat = await stage.bobbin(['cat', './copy/quilt/altair', EMPLOYMENT], {
    statuses: [EXIT_VERIFICATION],
    says: /hashes to [0-9a-f]{64}, the manifest says [0-9a-f]{64}/,
  })
  require(cat.stdout === '', 'bytes were shown before they were checked')
  if (!isMounted) return
  await stage.bobbin(['mount', './copy/quilt/altair', './copied', '--mkdir'])
  const read = await stage.shell(`cat copied/${EMPLOYMENT}`, { statuses: [1], says: /Input\/output error/ })
  require(read.stdout === '', 'the changed file was shown')
  stage.warnings(/[0-9a-f]{64}.*[0-9a-f]{64}/)
  stage.say('That file only; the others go on:')
  await stage.shell('tail -n 1 copied/energy/iowa-electricity.csv', { says: /2017-01-01,Renewables,21933/ })
}

async function forge(): Promise<void> {
  stage.heading('Change one byte of a manifest: nothing of it is used')
  cpSync(join(stage.folder, 'registry'), join(stage.folder, 'forged'), { recursive: true })
  const manifest = join(stage.folder, 'forged/.quilt/packages', SAMPLE_TOP_HASH)
  writeFileSync(manifest, readFileSync(manifest, 'utf8').replace('NOAA', 'NOAB'))
  const { stdout } = await stage.bobbin(['ls', './forged/quilt/altair'], {
    statuses: [EXIT_VERIFICATION],
    says: new RegExp(`${SAMPLE_TOP_HASH} hashes to [0-9a-f]{64}`),
  })
  require(stdout === '', 'the forged manifest was shown')
}

async function install(): Promise<void> {
  stage.heading('Without a mount: verified copies, and a check of any folder')
  await stage.bobbin(['install', REFERENCE, './installed'], { says: /9 files/ })
  changeByte('installed/climate/global-temp.csv', 100)
  await stage.bobbin(['verify', REFERENCE, './installed'], {
    statuses: [EXIT_VERIFICATION],
    says: /changed +climate\/global-temp\.csv/,
  })
  await stage.bobbin(['install', REFERENCE, './installed'], { says: /8 there already/ })
  await stage.bobbin(['verify', REFERENCE, './installed'], { says: /every one as it should be/ })
}

async function unmount(): Promise<void> {
  stage.heading('Unmount, and stop the daemon')
  await stage.bobbin(['umount', './data'])
  await stage.bobbin(['stop'])
  const left = stage.leftovers()
  require(left.length === 0, `still there: ${left.join(', ')}`)
}

function failure(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode
  process.stderr.write(`\nthe demo failed: ${error instanceof Error ? error.message : error}\n`)
  return 1
}

async function finish(exitCode: number): Promise<number> {
  try {
    await stage.clear()
  } catch (error) {
    return failure(error)
  }
  if (exitCode === 0) process.stdout.write('\nEverything did what it should; nothing is left behind.\n')
  if (exitCode === EXIT_NO_FUSE)
    process.stdout.write('\nAll but the mount did what it should; nothing is left behind.\n')
  return exitCode
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

/** `path` may be relative to the demo's folder. */
function changeByte(path: string, at: number): void {
  const file = resolve(stage.folder, path)
  const bytes = readFileSync(file)
  bytes[at]! ^= 1
  // Objects in the cache are read-only, also to their owner.
  chmodSync(file, 0o640)
  writeFileSync(file, bytes, { flag: 'r+' })
  stage.say(`(byte ${at + 1} of ${relative(stage.folder, file)} is changed)`)
}

function hasProgram(program: string): boolean {
  return (process.env.PATH ?? '').split(':').some(folder => folder !== '' && existsSync(join(folder, program)))
}

function require(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(what)
}
