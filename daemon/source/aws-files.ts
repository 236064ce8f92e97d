/**
 * Notices that ~/.aws/config or ~/.aws/credentials has changed. The SDK keeps what it has once read of them as long as the process
 * lives, and a daemon lives long: a new profile, region or endpoint would need a new daemon.
 */
import { stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { loadSharedConfigFiles } from '@smithy/core/config'

/** A change is seen by the first request that comes so much later. */
const LOOK_EVERY_MS = 5000

let lookAgainAt = Number.NEGATIVE_INFINITY
let looking: Promise<number> | undefined
let seen: string | undefined
let generation = 0

/** A number that is another one after each change that was noticed. Two looks at files, at most each 5 s. */
export function awsFilesGeneration(): number | Promise<number> {
  if (performance.now() < lookAgainAt) return generation
  looking ??= look().finally(() => {
    looking = undefined
    lookAgainAt = performance.now() + LOOK_EVERY_MS
  })
  return looking
}

async function look(): Promise<number> {
  const now = (await Promise.all(paths().map(stateOf))).join(' ')
  if (seen !== undefined && seen !== now) {
    // What it reads takes the place of what the SDK has kept, for all who ask the SDK without this option.
    await loadSharedConfigFiles({ ignoreCache: true }).catch(() => {})
    generation++
  }
  seen = now
  return generation
}

/** As the SDK finds them. */
function paths(): string[] {
  const { AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE, HOME } = process.env
  const folder = join(HOME || homedir(), '.aws')
  return [AWS_CONFIG_FILE || join(folder, 'config'), AWS_SHARED_CREDENTIALS_FILE || join(folder, 'credentials')]
}

async function stateOf(path: string): Promise<string> {
  try {
    const { dev, ino, size, mtimeMs, ctimeMs } = await stat(path)
    return [path, dev, ino, size, mtimeMs, ctimeMs].join(':')
  } catch {
    return `${path}: none`
  }
}
