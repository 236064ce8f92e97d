/**
 * Which code a run used: git's commit, and the exact tree of the files as they lay there, changed and new ones
 * included. The tree is made with an index and objects of our own, so the repository is not touched.
 */
import { createHash } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  statSync,
  utimesSync,
} from 'node:fs'
import { dirname, isAbsolute, join, relative, resolve } from 'node:path'
import { BobbinError, type ErrorCode } from '../../daemon/model/index.js'
import { fileSha256 } from '../record/ledger.js'
import { runQuietly } from './process.js'

export interface CodeIdentity {
  /** The repository's top folder, here. */
  readonly folder: string
  /** 40 hex. */
  readonly commit: string
  /** Of the files as they were; 40 hex. */
  readonly tree: string
  /** `refs/heads/main`; null: a detached head. */
  readonly ref: string | null
  /** Without credentials; null: none. */
  readonly remote: string | null
  readonly isDirty: boolean
  /** Files that git did not know. */
  readonly untracked: number
  /** Of source.diff; null when there is none. */
  readonly diffSha256: string | null
}

/** What people may have set otherwise: it shows in a diff, lets git overlook a file, or write into the repository. */
const SETTINGS = settings(
  'core.quotePath=true',
  'diff.suppressBlankEmpty=false',
  'core.fsmonitor=false',
  'core.untrackedCache=false',
  'core.sparseCheckout=false',
  'core.splitIndex=false',
  'protocol.ext.allow=never',
)

function settings(...all: string[]): string[] {
  return all.flatMap(setting => ['-c', setting])
}

interface GitOptions {
  readonly env?: Readonly<Record<string, string>>
  /** Besides SETTINGS. */
  readonly settings?: readonly string[]
  readonly input?: Buffer
  /** Then it may take as long as it wants. */
  readonly signal?: AbortSignal | undefined
  /** What it means when git fails. */
  readonly code?: ErrorCode
}

/** Git reads none of our environment's settings of a repository, and asks nobody anything. */
async function git(
  folder: string,
  args: readonly string[],
  { env, settings: more = [], input, signal, code = 'INVALID_ARGUMENT' }: GitOptions = {},
): Promise<Buffer> {
  const { status, stdout, stderr } = await runQuietly('git', ['-C', folder, ...SETTINGS, ...more, ...args], {
    env: { ...withoutGit(process.env), GIT_TERMINAL_PROMPT: '0', LC_ALL: 'C', ...env },
    input,
    signal,
  })
  if (status === 0) return stdout
  throw new BobbinError(code, `git ${args[0]} in ${folder}: ${stderr.toString('utf8').trim().slice(0, 500)}`)
}

function withoutGit(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !/^GIT_(?!SSL|SSH)/.test(name)))
}

async function text(folder: string, ...args: string[]): Promise<string> {
  return (await git(folder, args)).toString('utf8').trim()
}

/** The same bytes whatever people have set: plumbing follows hardly any of it. */
const DIFF = [
  ...['diff-tree', '-r', '-p', '--binary', '--full-index', '--no-renames', '--ignore-submodules=none'],
  ...['--submodule=short', '--no-color', '--no-ext-diff', '--no-textconv', '--src-prefix=a/', '--dst-prefix=b/'],
]
/** Of a repository that code is restored in: its files are the tree's bytes, and a diff is applied as it was made. */
const AS_RECORDED = settings(
  'core.autocrlf=false',
  'core.eol=lf',
  'core.safecrlf=false',
  'apply.whitespace=nowarn',
  'apply.ignoreWhitespace=no',
)

/** Of the repository that a folder is in; undefined: none, or git is not there. */
async function topFolder(dir: string): Promise<string | undefined> {
  const found = await runQuietly('git', ['-C', resolve(dir), 'rev-parse', '--show-toplevel'], {
    env: withoutGit(process.env),
  }).catch(() => undefined)
  return found?.status === 0 ? found.stdout.toString('utf8').trimEnd() : undefined
}

/** Does git leave this folder out of what it records of the repository around it (a folder for builds, say)? */
export async function isIgnored(path: string): Promise<boolean> {
  return git(path, ['check-ignore', '--quiet', '--', path]).then(
    () => true,
    () => false,
  )
}

/**
 * Undefined when the folder is in no repository, or git is not there. New files in `outputDir` are no code, wherever it
 * lies. `scratch` is a folder that goes afterwards. Throws INVALID_ARGUMENT for a repository without a commit, and for
 * changes that cannot be recorded.
 */
export async function identifyCode(
  dir: string,
  { scratch, outputDir }: { readonly scratch: string; readonly outputDir?: string | undefined },
): Promise<{ readonly identity: CodeIdentity; readonly diff: Buffer | undefined } | undefined> {
  const folder = await topFolder(dir)
  if (folder === undefined) return undefined
  const commit = await text(folder, 'rev-parse', '--verify', '--end-of-options', 'HEAD^{commit}').catch(() => {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `${folder} has no commit yet: commit the code, so that the run can name it`,
    )
  })
  const own = await ownIndex(folder, scratch)
  const { tree, isDirty } = await treeOf(folder, own.env, { scratch, outputDir })
  // With the objects of ours beside the repository's, so that new files are in it.
  const diff = isDirty ? await git(folder, [...DIFF, 'HEAD', tree], own) : undefined
  const files = ['.', ...excluding(folder, outputDir)]
  const untracked = await text(folder, 'ls-files', '--others', '--exclude-standard', '-z', '--', ...files)
  const ref = await text(folder, 'symbolic-ref', '--quiet', 'HEAD').catch(() => null)
  const remote = await text(folder, 'remote', 'get-url', 'origin').catch(() => null)
  const identity: CodeIdentity = {
    folder,
    commit,
    tree,
    ref,
    remote: remote === null ? null : withoutCredentials(remote),
    isDirty,
    untracked: untracked.split('\0').filter(name => name !== '').length,
    diffSha256: diff === undefined ? null : createHash('sha256').update(diff).digest('hex'),
  }
  return { identity, diff }
}

type Env = Readonly<Record<string, string>>

/**
 * Of the files as they lie there. Throws INVALID_ARGUMENT for a submodule with changes: all that a tree has of one is its
 * commit.
 */
async function treeOf(
  folder: string,
  env: Env,
  { scratch, outputDir }: { readonly scratch: string; readonly outputDir?: string | undefined },
): Promise<{ readonly tree: string; readonly isDirty: boolean }> {
  await clearFlags(folder, env)
  await git(folder, ['add', '--all', '--', '.', ...excluding(folder, outputDir)], { env })
  for (const { path, commit } of await submodulesOf(folder, env)) {
    const inside = join(folder, path)
    if (!existsSync(join(inside, '.git'))) continue
    const head = await text(inside, 'rev-parse', '--verify', '--end-of-options', 'HEAD^{commit}')
    // Which submodules `add` looks at can be set.
    if (head !== commit) await git(folder, ['update-index', '--cacheinfo', `160000,${head},${path}`], { env })
    const own = await ownIndex(inside, scratch)
    const { isDirty } = await treeOf(inside, own.env, { scratch, outputDir })
    if (isDirty)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${inside} is a repository within ${folder} and differs from its commit, and only its commit can be recorded: commit inside it`,
      )
  }
  const tree = (await git(folder, ['write-tree'], { env })).toString('utf8').trim()
  return { tree, isDirty: tree !== (await text(folder, 'rev-parse', '--verify', '--end-of-options', 'HEAD^{tree}')) }
}

/**
 * Git looks at no file that is flagged as unchanged, or as none of the working tree's. One of the latter that is not there
 * stays flagged: a sparse checkout has left it out, nobody has deleted it.
 */
async function clearFlags(folder: string, env: Env): Promise<void> {
  // Names are bytes.
  const lines = (await git(folder, ['ls-files', '-v', '-z'], { env })).toString('latin1').split('\0')
  const named = (flag: RegExp) =>
    lines.filter(line => flag.test(line)).map(line => Buffer.from(line.slice(2), 'latin1'))
  const isThere = (path: Buffer) =>
    lstatSync(Buffer.concat([Buffer.from(`${folder}/`), path]), { throwIfNoEntry: false }) !== undefined
  const clear = async (option: string, paths: readonly Buffer[]) => {
    if (paths.length === 0) return
    const input = Buffer.concat(paths.flatMap(path => [path, Buffer.from([0])]))
    await git(folder, ['update-index', option, '-z', '--stdin'], { env, input })
  }
  await clear('--no-assume-unchanged', named(/^[a-z]/))
  await clear('--no-skip-worktree', named(/^s/i).filter(isThere))
}

async function submodulesOf(folder: string, env: Env = {}) {
  const lines = (await git(folder, ['ls-files', '--stage', '-z'], { env })).toString('utf8').split('\0')
  return lines.flatMap(line => {
    const [, commit, path] = /^160000 ([0-9a-f]+) 0\t(.+)$/s.exec(line) ?? []
    return commit === undefined ? [] : [{ commit, path: path! }]
  })
}

/** A pathspec of git, for what lies below its folder. */
function excluding(folder: string, outputDir: string | undefined): string[] {
  if (outputDir === undefined) return []
  const path = relative(folder, realpathSync(outputDir))
  return path === '' || path.startsWith('..') ? [] : [`:(exclude,literal)${path}`]
}

async function ownIndex(folder: string, scratch: string) {
  const own = mkdtempSync(join(scratch, 'git-'))
  mkdirSync(join(own, 'objects'))
  const index = resolve(folder, await text(folder, 'rev-parse', '--git-path', 'index'))
  // What git has looked at already it need not read again, but for files that are no older than the index: those it reads,
  // since they may have changed after it looked. So the copy is as old as the index, and not a nanosecond younger.
  if (existsSync(index)) {
    const lookedAt = Math.floor(statSync(index).mtimeMs / 1000)
    copyFileSync(index, join(own, 'index'))
    utimesSync(join(own, 'index'), lookedAt, lookedAt)
  }
  const objects = resolve(folder, await text(folder, 'rev-parse', '--git-path', 'objects'))
  return {
    env: {
      GIT_INDEX_FILE: join(own, 'index'),
      GIT_OBJECT_DIRECTORY: join(own, 'objects'),
      // Quoted, since a colon would end it.
      GIT_ALTERNATE_OBJECT_DIRECTORIES: JSON.stringify(objects),
    },
  }
}

export function withoutCredentials(remote: string): string {
  if (!URL.canParse(remote)) return remote
  const url = new URL(remote)
  // In ssh:// a user says where to log in, and is no secret.
  if (url.protocol !== 'ssh:') url.username = ''
  url.password = ''
  return url.href
}

/**
 * A repository may have come with a stranger's package: what is missing in it is not fetched, since its config names the programs
 * that would do that. Of the two, Git before 2.39.4 knows the protocols alone.
 */
const AS_IT_IS = { GIT_NO_LAZY_FETCH: '1', GIT_ALLOW_PROTOCOL: 'none' }

/** Another repository may lie there by now, or this one without its history. */
async function hasCommit(folder: string, commit: string): Promise<boolean> {
  if (!existsSync(join(folder, '.git'))) return false
  return git(folder, ['cat-file', '-e', `${commit}^{commit}`], { env: AS_IT_IS }).then(
    () => true,
    () => false,
  )
}

/** Where a record's code is to be had, as far as can be told without asking anybody there. */
export interface CodePlace {
  /** The repository of this folder, where it has the commit. */
  readonly here: string | undefined
  /** The record's folder, where there is a repository on this machine. */
  readonly folder: string | undefined
  readonly remote: Remote | undefined
  /** What it takes of this machine or of its user's keys, in words; undefined: nothing. */
  readonly asks: string | undefined
}

interface Remote {
  readonly url: string
  /** Anybody gets the same from there: neither a file of this machine nor a key of its user is used. */
  readonly isPublic: boolean
}

const PUBLIC_PROTOCOLS = ['https', 'http', 'git']
const OWN_PROTOCOLS = ['ssh', 'file']

/** Undefined: no place that git is asked for code. Others (`ext::`, `fd::`) are programs that a remote's name would start. */
function parseRemote(url: string): Remote | undefined {
  if (/^-|\p{Cc}/u.test(url) || /^[\w+.-]+::/.test(url)) return undefined
  const protocol = /^([a-z][a-z0-9+.-]*):\/\//i.exec(url)?.[1]?.toLowerCase()
  // A path, or scp's way of naming a host.
  if (protocol === undefined) return { url, isPublic: false }
  const isPublic = PUBLIC_PROTOCOLS.includes(protocol)
  return isPublic || OWN_PROTOCOLS.includes(protocol) ? { url, isPublic } : undefined
}

/** Throws INVALID_ARGUMENT for a commit that is none. */
export async function findCode(code: CodeIdentity): Promise<CodePlace> {
  // From a record, which may be anybody's: git takes what begins with a hyphen for an option.
  if (!/^[0-9a-f]{40,64}$/.test(code.commit))
    throw new BobbinError('INVALID_ARGUMENT', `the record's ${JSON.stringify(code.commit)} is not a commit`)
  const own = await topFolder('.')
  const here = own !== undefined && (await hasCommit(own, code.commit)) ? own : undefined
  const isThere = isAbsolute(code.folder) && !code.folder.includes('\0') && existsSync(join(code.folder, '.git'))
  const folder = isThere && here === undefined ? code.folder : undefined
  const remote = code.remote === null ? undefined : parseRemote(code.remote)
  const isRemoteOwn = here === undefined && remote !== undefined && !remote.isPublic
  const places = [...(folder === undefined ? [] : [folder]), ...(isRemoteOwn ? [remote.url] : [])]
  return { here, folder, remote, asks: places.length === 0 ? undefined : places.join(', or ') }
}

/**
 * Puts the code of a record into a new folder: the commit, from where `findCode` found it, the diff on top, and its
 * submodules. Unless `isTrusted`, neither a file of this machine nor a key of its user is used for it, but for the
 * repository of this folder. Throws OBJECT_GONE, and FOLDER_DIFFERS when what comes of it is not the tree of the record.
 */
export async function restoreCode(
  code: CodeIdentity,
  diffPath: string,
  target: string,
  { isTrusted, signal }: { readonly isTrusted: boolean; readonly signal?: AbortSignal },
): Promise<void> {
  const place = await findCode(code)
  const folder = isTrusted && place.folder !== undefined && (await hasCommit(place.folder, code.commit))
  const here = place.here ?? (folder ? place.folder : undefined)
  const remote = isTrusted || place.remote?.isPublic ? place.remote?.url : undefined
  const source = here ?? remote
  if (source === undefined)
    throw new BobbinError(
      'OBJECT_GONE',
      `the code ${code.commit} is neither in ${code.folder} nor at a remote that can be asked: run this in a clone with that commit`,
    )
  const limits = { isTrusted, mayReadFolders: isTrusted || here !== undefined, signal }
  await clone(code.commit, source, target, limits)
  // What .gitmodules names is often relative to it.
  if (here !== undefined && place.remote !== undefined)
    await git(target, ['remote', 'set-url', '--', 'origin', place.remote.url])
  if (code.diffSha256 !== null) {
    if ((await fileSha256(diffPath)) !== code.diffSha256)
      throw new BobbinError('FOLDER_DIFFERS', `${diffPath} is missing or is not what the record says`)
    await git(target, ['apply', '--cached', resolve(diffPath)])
  }
  const tree = (await git(target, ['write-tree'])).toString('utf8').trim()
  if (tree !== code.tree)
    throw new BobbinError('FOLDER_DIFFERS', `the code has tree ${tree}, the record has ${code.tree}`)
  await checkOut(target, limits)
  await restoreSubmodules(target, here, limits)
}

interface CloneLimits {
  readonly isTrusted: boolean
  /** Repositories in folders of this machine may be read. */
  readonly mayReadFolders: boolean
  readonly signal: AbortSignal | undefined
}

/**
 * Git asks no others. Keys are ours to use, or not: helpers give passwords for any address that a record has, and git-lfs, which
 * knows nothing of git's protocols, logs in by ssh wherever a file of the repository says.
 */
function limitsOf({ isTrusted, mayReadFolders, signal }: CloneLimits): GitOptions {
  const protocols = [...PUBLIC_PROTOCOLS, ...(isTrusted ? ['ssh'] : []), ...(mayReadFolders ? ['file'] : [])]
  return {
    env: {
      GIT_ALLOW_PROTOCOL: protocols.join(':'),
      ...(!isTrusted && { GIT_NO_LAZY_FETCH: '1', GIT_SSH_COMMAND: 'false' }),
    },
    settings: isTrusted ? AS_RECORDED : [...AS_RECORDED, ...settings('credential.helper=', 'core.askPass=')],
    signal,
    code: 'OBJECT_GONE',
  }
}

/** With the commit in its index, and no files yet. */
async function clone(commit: string, source: string, target: string, limits: CloneLimits): Promise<void> {
  const args = ['clone', '--quiet', '--no-checkout', ...AS_RECORDED, '--', source, target]
  await git(dirname(target), args, limitsOf(limits))
  if (!(await hasCommit(target, commit)))
    throw new BobbinError('OBJECT_GONE', `there is no commit ${commit} in ${source}`)
  await git(target, ['update-ref', '--no-deref', 'HEAD', commit])
  await git(target, ['read-tree', 'HEAD'])
}

/** Files go through filters (git-lfs) on their way, which ask who they like: within the same limits. */
async function checkOut(target: string, limits: CloneLimits): Promise<void> {
  await git(target, ['checkout-index', '--all', '--index'], limitsOf(limits))
}

/** From where they lie in the folder that the code is from, pushed or not; else from where .gitmodules has them. */
async function restoreSubmodules(target: string, folder: string | undefined, limits: CloneLimits): Promise<void> {
  for (const { path, commit } of await submodulesOf(target)) {
    const inside = join(target, path)
    const here = folder && join(folder, path)
    if (here !== undefined && (await hasCommit(here, commit))) {
      await clone(commit, here, inside, limits)
      const remote = await text(here, 'remote', 'get-url', 'origin').catch(() => undefined)
      if (remote !== undefined) await git(inside, ['remote', 'set-url', '--', 'origin', remote])
      await checkOut(inside, limits)
      await restoreSubmodules(inside, here, limits)
    } else {
      // Who has a folder of ours may name others; a record from elsewhere may not.
      const mayReadFolders = limits.isTrusted && folder !== undefined
      const args = ['submodule', '--quiet', 'update', '--init', '--recursive', '--', path]
      await git(target, args, limitsOf({ ...limits, mayReadFolders }))
    }
  }
}
