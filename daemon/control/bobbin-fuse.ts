/**
 * Where the program bobbin-fuse is, and the command that starts a daemon: below bobbin-fuse where there
 * is one, by itself (with fuse-native) where there is none.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, lstatSync, readlinkSync, realpathSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { DaemonOptions } from './daemon.js'
import { chooseSocketPath } from './socket-path.js'

/** A path, or `none` to do without it. */
const VARIABLE = 'BOBBIN_FUSE'
const RUN_MS = 5000
/** As many as the kernel follows. */
const LINKS_MAX = 40
/** The daemon gives up by itself, in time; this is for one that says nothing any more. Enough to start another. */
const PATIENCE_MS_MIN = 10_000

export type FoundBobbinFuse =
  | { readonly path: string; readonly reason?: undefined }
  | { readonly path?: undefined; readonly reason: string }

let found: FoundBobbinFuse | undefined

/** Looked for once: by BOBBIN_FUSE, as a prebuilt package, then as what was built in this checkout. */
export function findBobbinFuse(): FoundBobbinFuse {
  found ??= look()
  return found
}

function look(): FoundBobbinFuse {
  const named = process.env[VARIABLE]
  if (named === 'none') return { reason: `it is switched off (${VARIABLE}=none)` }
  if (named) return tried(named)
  if (process.platform !== 'linux') return { reason: `it is for Linux, and this is ${process.platform}` }
  const prebuilt = prebuiltPath()
  const built = installedPath(fileURLToPath(new URL('../../../build/native/bobbin-fuse', import.meta.url)))
  const path = [built, prebuilt].find(candidate => candidate !== undefined && existsSync(candidate))
  if (path !== undefined) return tried(path)
  return {
    reason: `there is no prebuilt ${prebuiltPackage()}, and it was not built here (npm run build:native, which needs cmake and g++)`,
  }
}

/** One package a platform, installed by npm where it fits. */
export function prebuiltPackage(): string {
  return `bobbin-fuse-${process.platform}-${process.arch}`
}

function prebuiltPath(): string | undefined {
  try {
    return installedPath(createRequire(import.meta.url).resolve(`${prebuiltPackage()}/bin/bobbin-fuse`))
  } catch {
    return undefined
  }
}

function tried(path: string): FoundBobbinFuse {
  const { status, error, stderr } = spawnSync(path, ['--version'], { timeout: RUN_MS, encoding: 'utf8' })
  if (status === 0) return { path }
  return { reason: `${path} does not run: ${error?.message ?? stderr.trim().split('\n')[0]}` }
}

/**
 * A file of this installation, by the folder that this process was started through: /usr/lib/bobbin/current, say, where a
 * module only knows the folder that this was a link to. What is started again later is then what the link means by then.
 */
export function installedPath(file: string, entry = process.argv[1]): string {
  if (entry === undefined) return file
  try {
    let started = resolve(entry)
    // A link to the file itself (/usr/bin/bobbin) lies elsewhere; links of folders stay.
    for (let links = 0; links < LINKS_MAX && lstatSync(started).isSymbolicLink(); links++)
      started = resolve(dirname(started), readlinkSync(started))
    const path = join(dirname(started), relative(dirname(realpathSync(started)), file))
    return realpathSync(path) === realpathSync(file) ? path : file
  } catch {
    // Moved away since, or not built.
    return file
  }
}

/** What to spawn for a daemon. `because`: why it is not bobbin-fuse, where it might be. */
export function daemonCommand(options: DaemonOptions): { readonly argv: readonly string[]; readonly because?: string } {
  const main = installedPath(fileURLToPath(new URL('../main.js', import.meta.url)))
  const daemon = [process.execPath, main, JSON.stringify(options)]
  if (options.transport === 'fuse-native') return { argv: daemon }
  const { path, reason } = findBobbinFuse()
  if (path === undefined) return { argv: daemon, because: reason }
  const own = ['--cache', options.cacheDir, '--socket', chooseSocketPath(options.cacheDir)]
  const patience = ['--patience', String(Math.ceil(Math.max(PATIENCE_MS_MIN, 2 * options.ioTimeoutMs) / 1000))]
  return { argv: [path, ...own, ...patience, '--', ...daemon] }
}
