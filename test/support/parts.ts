/**
 * The real parts of the interop suite: servers and clients that others wrote, under `.parts/` (or
 * BOBBIN_PARTS), where `npm run setup -- --for interop` puts them.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const repository = fileURLToPath(new URL('../../../', import.meta.url))

const PARTS = {
  versitygw: 'bin/versitygw',
  minio: 'bin/minio',
  /** Python with quilt3 8.0.0. */
  quilt3: 'quilt3/bin/python',
  /** Python with torch, torchdata, webdataset, Ray and others that read batches. */
  loader: 'loader/bin/python',
  /** The file system of an image with Python, torch and Pillow. */
  trainer: 'trainer.tar',
} as const

/** Which suite brings what `interop` does not. */
const SUITES = { loader: 'clients', trainer: 'containers' } as const

/** The part's program. A missing one is a failure, never a skip. */
export function part(name: keyof typeof PARTS): string {
  const path = join(process.env.BOBBIN_PARTS ?? join(repository, '.parts'), PARTS[name])
  if (!existsSync(path))
    throw new Error(
      `${name} is not at ${path}: run  npm run setup -- --for ${SUITES[name as keyof typeof SUITES] ?? 'interop'}`,
    )
  return path
}

/** The command line, as built. */
export const bobbinPath = join(repository, 'dist/cli/main.js')
