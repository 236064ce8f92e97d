/**
 * Which code a run used: git's commit, and the exact tree of the files as they lay there, changed and new ones
 * included. The tree is made with an index and objects of our own, so the repository is not touched.
 */
import { createHash } from 'node:crypto'
import { copyFileSync, existsSync, mkdirSync, realpathSync, rmSync, statSync, utimesSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { BobbinError } from '../../daemon/model/index.js'
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

/** What people may have set otherwise, and a diff would show. */
const SETTINGS = settings('core.quotePath=true', 'diff.suppressBlankEmpty=false')

function settings(...all: string[]): string[] {
  return all.flatMap(setting => ['-c', setting])
}

/** Git reads none of our environment's settings of a repository, and asks nobody anything. */
async function git(
  folder: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Buffer> {
  const { status, stdout, stderr } = await runQuietly('git', ['-C', folder, ...SETTINGS, ...args], {
    env: { ...withoutGit(process.env), GIT_TERMINAL_PROMPT: '0', LC_ALL: 'C', ...env },
  })
  if (status === 0) return stdout
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `git ${args[0]} in ${folder}: ${stderr.toString('utf8').trim().slice(0, 500)}`,
  )
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

/**
 * Undefined when the folder is in no repository, or git is not there. New files in `outputDir` are no code, wherever it
 * lies. Throws INVALID_ARGUMENT for a repository without a commit.
 */
export async function identifyCode(
  dir: string,
  { scratch, outputDir }: { readonly scratch: string; readonly outputDir?: string | undefined },
): Promise<{ readonly identity: CodeIdentity; readonly diff: Buffer | undefined } | undefined> {
  const found = await runQuietly('git', ['-C', resolve(dir), 'rev-parse', '--show-toplevel'], {
    env: withoutGit(process.env),
  }).catch(() => undefined)
  if (found === undefined || found.status !== 0) return undefined
  const folder = found.stdout.toString('utf8').trimEnd()
  const commit = await text(folder, 'rev-parse', '--verify', '--end-of-options', 'HEAD^{commit}').catch(() => {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `${folder} has no commit yet: commit the code, so that the run can name it`,
    )
  })
  const own = await ownIndex(folder, scratch)
  try {
    const files = ['.', ...excluding(folder, outputDir)]
    await git(folder, ['add', '--all', '--', ...files], own.env)
    const tree = (await git(folder, ['write-tree'], own.env)).toString('utf8').trim()
    const isDirty = tree !== (await text(folder, 'rev-parse', '--verify', '--end-of-options', 'HEAD^{tree}'))
    // With the objects of ours beside the repository's, so that new files are in it.
    const diff = isDirty ? await git(folder, [...DIFF, 'HEAD', tree], own.env) : undefined
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
  } finally {
    rmSync(own.folder, { recursive: true, force: true })
  }
}

/** A pathspec of git, for what lies below its folder. */
function excluding(folder: string, outputDir: string | undefined): string[] {
  if (outputDir === undefined) return []
  const path = relative(folder, realpathSync(outputDir))
  return path === '' || path.startsWith('..') ? [] : [`:(exclude,literal)${path}`]
}

async function ownIndex(folder: string, scratch: string) {
  const own = join(scratch, 'git')
  mkdirSync(join(own, 'objects'), { recursive: true })
  const index = resolve(folder, await text(folder, 'rev-parse', '--git-path', 'index'))
  // What git has looked at already it need not read again, but for files that are no older than the index: those it reads,
  // since they may have changed after it looked. So the copy is as old as the index, and not a nanosecond younger.
  if (existsSync(index)) {
    copyFileSync(index, join(own, 'index'))
    const lookedAt = Math.floor(statSync(index).mtimeMs / 1000)
    utimesSync(join(own, 'index'), lookedAt, lookedAt)
  }
  const objects = resolve(folder, await text(folder, 'rev-parse', '--git-path', 'objects'))
  return {
    folder: own,
    env: {
      GIT_INDEX_FILE: join(own, 'index'),
      GIT_OBJECT_DIRECTORY: join(own, 'objects'),
      // Quoted, since a colon would end it.
      GIT_ALTERNATE_OBJECT_DIRECTORIES: JSON.stringify(objects),
    },
  }
}

function withoutCredentials(remote: string): string {
  if (!URL.canParse(remote)) return remote
  const url = new URL(remote)
  url.username = ''
  url.password = ''
  return url.href
}

/** Another repository may lie there by now, or this one without its history. */
async function hasCommit(folder: string, commit: string): Promise<boolean> {
  if (!existsSync(join(folder, '.git'))) return false
  return git(folder, ['cat-file', '-e', `${commit}^{commit}`]).then(
    () => true,
    () => false,
  )
}

/**
 * Puts the code of a record into a new folder: the commit, from a repository here or its remote, and the diff on top.
 * Throws INVALID_ARGUMENT when what comes of it is not the tree of the record.
 */
export async function restoreCode(code: CodeIdentity, diffPath: string, target: string): Promise<void> {
  // From a record, which may be anybody's: git takes what begins with a hyphen for an option.
  if (!/^[0-9a-f]{40,64}$/.test(code.commit))
    throw new BobbinError('INVALID_ARGUMENT', `the record's ${JSON.stringify(code.commit)} is not a commit`)
  const source = (await hasCommit(code.folder, code.commit)) ? code.folder : code.remote
  const isGone = (remote: string) =>
    new BobbinError('OBJECT_GONE', `the code ${code.commit} is neither in ${code.folder} nor at ${remote}`)
  if (source === null) throw isGone('a remote')
  const cloned = await runQuietly(
    'git',
    ['-c', 'protocol.ext.allow=never', 'clone', '--quiet', '--no-checkout', ...AS_RECORDED, '--', source, target],
    { env: { ...withoutGit(process.env), GIT_TERMINAL_PROMPT: '0', LC_ALL: 'C' } },
  )
  if (cloned.status !== 0)
    throw new BobbinError(
      'OBJECT_GONE',
      `the code cannot be had from ${source}: ${cloned.stderr.toString('utf8').trim()}`,
    )
  if (!(await hasCommit(target, code.commit))) throw isGone(source)
  await git(target, ['update-ref', '--no-deref', 'HEAD', code.commit])
  await git(target, ['read-tree', 'HEAD'])
  if (code.diffSha256 !== null) await git(target, ['apply', '--cached', resolve(diffPath)])
  const tree = (await git(target, ['write-tree'])).toString('utf8').trim()
  if (tree !== code.tree)
    throw new BobbinError('FOLDER_DIFFERS', `the code comes out as tree ${tree}, the record has ${code.tree}`)
  await git(target, ['checkout-index', '--all', '--index'])
}
