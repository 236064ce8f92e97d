/**
 * The registries of quilt3's own configuration (config.yml in its data folder): where a name without a registry is looked
 * for, and where `install --register` leaves manifests. A file of another user says nothing to us: after `sudo` it would
 * be theirs who may not choose what root reads.
 */
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'
import { BobbinError, localError, type Registry, systemCode } from '../daemon/model/index.js'
import { parseRegistry } from '../daemon/registry/reference.js'
import { quiltDataFolder } from '../daemon/source/quilt-login.js'

/** quilt3's own has two kilobytes. */
const CONFIG_BYTES_MAX = 2 ** 20

export interface QuiltRegistries {
  /** `default_remote_registry`. */
  readonly remote: Registry | undefined
  /** `default_local_registry`, whether there is something in it or not. */
  readonly local: Registry
  readonly hasLocal: boolean
}

/** Throws INVALID_ARGUMENT, naming the file, for one that cannot be read as quilt3 reads it. */
export function quiltRegistries(): QuiltRegistries {
  const folder = quiltDataFolder()
  const config = readConfig(join(folder, 'config.yml'))
  const local = config.local ?? ({ kind: 'file', path: join(folder, 'packages') } as const)
  const hasLocal = local.kind === 's3' || existsSync(join(local.path, '.quilt'))
  return { remote: config.remote, local, hasLocal }
}

function readConfig(path: string): { readonly remote?: Registry | undefined; readonly local?: Registry | undefined } {
  let text: string
  try {
    const { uid, size } = statSync(path)
    if (uid !== process.getuid?.()) return {}
    if (size > CONFIG_BYTES_MAX)
      throw new BobbinError('INVALID_ARGUMENT', `${path} has ${size} bytes, at most ${CONFIG_BYTES_MAX}`)
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EACCES'].includes(systemCode(error) ?? '')) return {}
    throw localError(`read ${path}`, error)
  }
  try {
    const config: unknown = parse(text)
    const value = (key: string) => {
      const found = typeof config === 'object' && config !== null ? (config as Record<string, unknown>)[key] : undefined
      return typeof found === 'string' && found !== '' ? parseRegistry(found) : undefined
    }
    return { remote: value('default_remote_registry'), local: value('default_local_registry') }
  } catch (error) {
    const reason = error instanceof Error ? error.message.split('\n')[0] : String(error)
    throw new BobbinError('INVALID_ARGUMENT', `quilt3's ${path} cannot be read: ${reason}`, { cause: error })
  }
}
