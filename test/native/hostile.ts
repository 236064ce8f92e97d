/**
 * Runs a bobbin-fuse whose daemon is under somebody else's control (hostile-daemon.ts), as root, in a mount
 * namespace of its own.
 *
 *   node dist/test/native/hostile.js [--seconds 20] [--seed N] [--program build/asan/bobbin-fuse]
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { compileManifest } from '../../daemon/manifest/compile.js'
import type { Registry, TopHash } from '../../daemon/model/index.js'
import { type Outcome, runProgram } from '../support/cli.js'
import { fileRow, manifestText, topHashOf } from '../support/manifest.js'
import { repository } from '../support/parts.js'
import type { HostileOptions } from './hostile-daemon.js'
import type { ParentOptions } from './hostile-parent.js'

const REGISTRY: Registry = { kind: 's3', bucket: 'bucket' }
/** Beside the time that it plays: starting, and unmounting what is left. */
const MORE_MS = 120_000

export interface Play extends Pick<HostileOptions, 'seed' | 'seconds' | 'play'> {
  /** A bobbin-fuse. */
  readonly program: string
}

export async function playHostile(asked: Play): Promise<Outcome> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-hostile-'))
  try {
    for (const name of ['roots', 'roots-2', 'cache']) mkdirSync(join(folder, name), { mode: 0o755 })
    const { index, manifest } = await writeIndex(join(folder, 'cache'))
    const options: HostileOptions = {
      folder,
      index,
      manifest,
      seed: asked.seed,
      seconds: asked.seconds,
      play: asked.play,
    }
    const daemon = [process.execPath, join(import.meta.dirname, 'hostile-daemon.js'), JSON.stringify(options)]
    const roots = ['roots', 'roots-2'].flatMap(name => ['--mount-below', join(folder, name)])
    const bobbinFuse = [asked.program, '--cache', join(folder, 'cache'), '--threads', '2', ...roots, '--', ...daemon]
    return await runProgram('unshare', ['--mount', '--propagation', 'private', ...bobbinFuse], {
      timeoutMs: asked.seconds * 1000 + MORE_MS,
    })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Unmounting what was left, below a folder that is exchanged all the time (hostile-parent.ts). */
export async function playHostileParent(asked: Pick<ParentOptions, 'seconds' | 'program'>): Promise<Outcome> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-hostile-'))
  try {
    for (const name of ['roots', 'cache']) mkdirSync(join(folder, name))
    const play = [
      process.execPath,
      join(import.meta.dirname, 'hostile-parent.js'),
      JSON.stringify({ folder, ...asked }),
    ]
    return await runProgram('unshare', ['--mount', '--propagation', 'private', ...play], {
      timeoutMs: asked.seconds * 1000 + MORE_MS,
    })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

async function writeIndex(folder: string): Promise<{ readonly index: string; readonly manifest: string }> {
  const files = [fileRow('d/f', { size: 3 })]
  const [index, manifest] = [join(folder, 'index'), join(folder, 'manifest')]
  const header = { version: 'v0', message: 'hi' }
  writeFileSync(manifest, manifestText(files, header))
  const topHash = topHashOf(files, header) as TopHash
  await compileManifest({ manifestPath: manifest, indexPath: index, topHash, registry: REGISTRY })
  return { index, manifest }
}

if (process.argv[1] === import.meta.filename) {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '20' },
      seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
      program: { type: 'string', default: join(repository, 'build/native/bobbin-fuse') },
      play: { type: 'string', default: 'all' },
    },
  })
  const { seconds, seed, program, play } = values
  const outcome = await playHostile({
    ...{ seconds: Number(seconds), seed: Number(seed), program },
    play: play === 'exchange' ? 'exchange' : 'all',
  })
  process.stdout.write(`seed ${seed}: ${outcome.stdout}${outcome.status === 0 ? '' : outcome.stderr.slice(-8000)}`)
  process.exitCode = outcome.status ?? 1
}
