/**
 * May others read or write what is ours? The cache has bytes that were fetched with one person's credentials, its sockets give
 * rights, records have commands and variables, and Quilt's and AWS's files are credentials. Bobbin makes all of them narrow; a
 * `chmod`, a copy or an old version may have left them wider. Each finding says the command that mends it. POSIX ACLs are not looked at.
 */
import { type Dirent, lstatSync, readdirSync, type Stats, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { DOORS, doorMode, doorPath } from '../daemon/control/doors.js'
import { homeFolder, systemCode, userName, xdgFolder } from '../daemon/model/index.js'
import { quiltDataFolder } from '../daemon/source/quilt-login.js'
import { objectsFolder, readOwner } from '../daemon/store/index.js'
import { stateDir } from './record/run-folder.js'
import { commandLine } from './run/running.js'

export interface Finding {
  readonly found: string
  readonly fix: string
}

/** A file or a folder, and the widest mode that it may have. */
interface Place {
  readonly path: string
  readonly what: string
  readonly modeMax: number
  /** Where it may be a link to what is meant, it is followed. */
  readonly isFollowed?: boolean
}

/** Of objects and of runs so many are looked at: they are made alike, and there may be millions. */
const LOOKED_AT_MAX = 1000
const STICKY = 0o1000
/** Not the group's: many systems give each user a group of their own. */
const OTHERS_WRITE = 0o002

export function lookAtRights(cacheDir: string, configPath: string | undefined): Finding[] {
  const places = [...cachePlaces(cacheDir), ...socketPlaces(cacheDir), ...statePlaces(), ...secretPlaces(configPath)]
  return [...places.flatMap(findingOf), ...leftByOthers(cacheDir), ...above(cacheDir), ...above(stateDir())]
}

/** Of a file whose path only a command line knows, which looks at it when it is used. */
export function lookAtSecret(path: string, what: string): Finding[] {
  return findingOf({ path, what, modeMax: 0o600, isFollowed: true })
}

function cachePlaces(cacheDir: string): Place[] {
  const folder = (path: string, what: string): Place => ({ path, what, modeMax: 0o750 })
  const file = (path: string, what: string): Place => ({ path, what, modeMax: 0o640 })
  return [
    { ...folder(cacheDir, 'the cache'), isFollowed: true },
    ...['objects', 'packages', 'access', 'loader', 'tmp', 'uploads'].map(name =>
      folder(join(cacheDir, name), 'a folder of the cache'),
    ),
    ...['owner', 'mounts', 'daemon.log'].map(name => file(join(cacheDir, name), 'a file of the cache')),
    ...below(objectsFolder(cacheDir)).map(({ path, isFolder }) =>
      isFolder ? folder(path, 'a folder of objects') : file(path, 'an object'),
    ),
  ]
}

function socketPlaces(cacheDir: string): Place[] {
  const control = owner(cacheDir)?.facts?.socketPath ?? join(cacheDir, 'daemon.sock')
  return [
    ...DOORS.map(door => ({
      path: doorPath(control, door),
      what: `the daemon's socket for ${door}`,
      modeMax: doorMode[door],
    })),
    { path: join(cacheDir, 'loader', 'loader.sock'), what: "the loader's socket", modeMax: 0o660 },
  ]
}

function owner(cacheDir: string) {
  try {
    return readOwner(cacheDir)
  } catch {
    // It is not ours to read, which the cache's own finding says.
    return undefined
  }
}

function statePlaces(): Place[] {
  const runs = join(stateDir(), 'runs')
  const found = list(runs).slice(-LOOKED_AT_MAX)
  return [runs, ...found.map(({ name }) => join(runs, name))].map(path => ({
    path,
    what: 'records of runs',
    modeMax: 0o700,
  }))
}

/** Nobody else may read what is secret, or write what says where data comes from. */
function secretPlaces(configPath: string | undefined): Place[] {
  const { AWS_SHARED_CREDENTIALS_FILE, BOBBIN_RUN_KEY } = process.env
  const quilt = quiltDataFolder()
  const secret = (path: string, what: string): Place => ({ path, what, modeMax: 0o600, isFollowed: true })
  const open = (path: string, what: string): Place => ({ path, what, modeMax: 0o775, isFollowed: true })
  return [
    secret(join(quilt, 'credentials.json'), "Quilt's credentials"),
    secret(join(quilt, 'auth.json'), "Quilt's login"),
    open(quilt, "Quilt's folder"),
    open(join(quilt, 'config.yml'), "Quilt's config"),
    secret(AWS_SHARED_CREDENTIALS_FILE || join(homeFolder(), '.aws', 'credentials'), "AWS's credentials"),
    open(configPath || join(xdgFolder('XDG_CONFIG_HOME', '.config'), 'bobbin', 'config.toml'), "Bobbin's config"),
    ...(BOBBIN_RUN_KEY ? [secret(BOBBIN_RUN_KEY, 'the key that signs records')] : []),
  ]
}

function findingOf({ path, what, modeMax, isFollowed = false }: Place): Finding[] {
  const stats = look(path, isFollowed)
  if (stats === undefined) return []
  const uid = process.getuid?.() ?? 0
  // Root looks after the caches of others, too.
  if (uid !== 0 && stats.uid !== uid && stats.uid !== 0) {
    const fix = commandLine(['chown', '-h', userName(), path])
    return [{ found: `${path} (${what}) belongs to another user (${stats.uid})`, fix: `${fix} (as root)` }]
  }
  const wider = stats.mode & 0o777 & ~modeMax
  // A link has no mode of its own.
  if (wider === 0 || stats.isSymbolicLink()) return []
  const found = `${path} (${what}) is wider than it should be: ${octal(stats.mode)}, not ${octal(modeMax)}`
  return [{ found, fix: commandLine(['chmod', octal(stats.mode & 0o777 & modeMax), path]) }]
}

/** What root (by an earlier version, or a command of its own) has left in our cache: the daemon can neither read nor delete it. */
function leftByOthers(cacheDir: string): Finding[] {
  const uid = process.getuid?.() ?? 0
  if (uid === 0 || look(cacheDir, true)?.uid !== uid) return []
  const left = ['packages', 'objects', 'tmp', 'loader', 'access', 'uploads']
    .flatMap(name => below(join(cacheDir, name)))
    .filter(({ path }) => (look(path, false)?.uid ?? uid) !== uid)
  if (left.length === 0) return []
  const found = `${left.length} files and folders in the cache belong to another user, such as ${left[0]!.path}`
  return [{ found, fix: `${commandLine(['chown', '-hR', String(uid), cacheDir])} (as root)` }]
}

/** Who may write to a folder above may put another one in this one's place. */
function above(path: string): Finding[] {
  const found: Finding[] = []
  for (let folder = dirname(path); ; folder = dirname(folder)) {
    const stats = look(folder, true)
    if (stats !== undefined && (stats.mode & OTHERS_WRITE) !== 0 && (stats.mode & STICKY) === 0)
      found.push({
        found: `${folder} lies above ${path}, and others may write to it: ${octal(stats.mode)}`,
        fix: commandLine(['chmod', 'o-w', folder]),
      })
    if (folder === dirname(folder)) return found
  }
}

function look(path: string, isFollowed: boolean): Stats | undefined {
  try {
    return isFollowed ? statSync(path) : lstatSync(path)
  } catch (error) {
    // What we may not even look at is narrow enough.
    if (['ENOENT', 'ENOTDIR', 'EACCES', 'ELOOP'].includes(systemCode(error) ?? '')) return undefined
    throw error
  }
}

/** The folder itself and what is in it, breadth first, as far as is looked at. */
function below(folder: string): { readonly path: string; readonly isFolder: boolean }[] {
  const found = [{ path: folder, isFolder: true }]
  for (let i = 0; i < found.length && found.length < LOOKED_AT_MAX; i++) {
    const { path, isFolder } = found[i]!
    if (!isFolder) continue
    for (const entry of list(path).slice(0, LOOKED_AT_MAX - found.length))
      found.push({ path: join(path, entry.name), isFolder: entry.isDirectory() })
  }
  return found
}

function list(folder: string): Dirent[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
  } catch {
    return []
  }
}

function octal(mode: number): string {
  return (mode & 0o777).toString(8).padStart(4, '0')
}
