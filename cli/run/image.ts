/**
 * Which image a run uses. A tag is resolved to a digest before anything is started, since it may point elsewhere a moment
 * later. What engines call an image's id depends on their store (moby#44144), so everything that names it is kept.
 */
import { BobbinError } from '../../daemon/model/index.js'
import { runQuietly } from './process.js'

export interface ImageIdentity {
  /** As it was typed. */
  readonly asked: string
  /** What is started: `repo@sha256:…`, or the id of one that no registry has. */
  readonly reference: string
  /** Of the index or manifest in the registry, or the id where it is `localOnly`; `sha256:…`. */
  readonly digest: string
  readonly repository: string | null
  /** Of its configuration, `sha256:…`; null where the engine has another notion of ids. */
  readonly id: string | null
  /** The manifest for this platform, where a registry told it. */
  readonly platformManifest: string | null
  /** `linux/amd64` */
  readonly platform: string
  /** No registry is known to have it: perhaps only this machine does. */
  readonly localOnly: boolean
}

interface Inspected {
  readonly Id: string
  readonly RepoDigests: readonly string[] | null
  /** Podman's: of the manifest for this platform. */
  readonly Digest?: string
  readonly Os: string
  readonly Architecture: string
}

/** Who has not answered by then is not there. */
const ANSWER_MS = 60_000

/** Docker's and podman's reference of an image; nothing that they would take for an option. */
const REFERENCE = /^[a-zA-Z0-9][\w./:@-]*$/

/** What engines say when a registry cannot be reached now. */
const NOT_NOW =
  /no such host|connection refused|connection reset|no route to host|network is unreachable|name resolution|server misbehaving|(?:i\/o|TLS handshake) timeout|deadline exceeded|Client\.Timeout|request canceled while waiting/i

/**
 * Pulls it when it is not here, and `onPull` is there to be told so. Throws INVALID_ARGUMENT, OBJECT_GONE (no such image), UPSTREAM_UNAVAILABLE (its registry),
 * DAEMON_UNAVAILABLE (the engine), INTERRUPTED.
 */
export async function identifyImage(
  program: string,
  asked: string,
  options: { readonly signal: AbortSignal; readonly onPull: (() => void) | undefined },
): Promise<ImageIdentity> {
  if (!REFERENCE.test(asked)) throw new BobbinError('INVALID_ARGUMENT', `not an image: ${JSON.stringify(asked)}`)
  const { signal, onPull } = options
  let found = await inspect(program, asked, signal)
  if (found === undefined && asked.startsWith('sha256:'))
    throw new BobbinError('OBJECT_GONE', `the image ${asked} is not here, and no registry knows an image by its id`)
  if (found === undefined && onPull === undefined)
    throw new BobbinError(
      'OBJECT_GONE',
      `the image ${asked} is not here yet: it is pulled once everything else is in order`,
    )
  if (found === undefined) {
    onPull?.()
    const { status, stderr } = await runQuietly(program, ['pull', '--quiet', '--', asked], { signal })
    if (status !== 0) {
      const code = NOT_NOW.test(stderr.toString('utf8')) ? 'UPSTREAM_UNAVAILABLE' : 'OBJECT_GONE'
      throw new BobbinError(code, `the image ${asked} cannot be had: ${firstLine(stderr)}`)
    }
    found = await inspect(program, asked, signal)
  }
  if (found === undefined) throw new BobbinError('OBJECT_GONE', `no such image: ${asked}`)
  const { Id, RepoDigests, Digest, Os, Architecture } = found
  // Podman leaves the algorithm out.
  const id = Id.includes(':') ? Id : `sha256:${Id}`
  const name = repositoryOf(asked)
  // What podman has made or imported itself gets a digest below this name, which is no registry's.
  const digests = (RepoDigests ?? []).filter(text => !text.startsWith('localhost/'))
  // One image may be known under several names: the one that was asked for.
  const pushed = digests.find(text => isSameRepository(text.split('@')[0]!, name)) ?? digests[0]
  const [repository, digest] = pushed?.split('@') ?? []
  const told =
    pushed === undefined
      ? undefined
      : (Digest ?? (await platformManifest(program, pushed, { os: Os, architecture: Architecture, signal })))
  const isContainerds = await isContainerdStore(program, signal)
  const localOnly = pushed === undefined || (isContainerds && told === undefined)
  return {
    asked,
    reference: pushed ?? id,
    digest: digest ?? id,
    repository: localOnly ? null : repository!,
    id: isContainerds ? null : id,
    platformManifest: told ?? null,
    platform: `${Os}/${Architecture}`,
    localOnly,
  }
}

/** Docker's other store: there every image has a digest below its name, pushed or not, and that is its id, too. */
async function isContainerdStore(program: string, signal: AbortSignal): Promise<boolean> {
  const args = ['info', '--format', '{{json .DriverStatus}}']
  const { stdout } = await runQuietly(program, args, { signal, timeoutMs: ANSWER_MS })
  return stdout.includes('io.containerd.snapshotter')
}

async function inspect(program: string, name: string, signal: AbortSignal): Promise<Inspected | undefined> {
  const limits = { signal, timeoutMs: ANSWER_MS }
  const { status, stdout, stderr } = await runQuietly(program, ['image', 'inspect', '--', name], limits)
  if (status === null) throw new BobbinError('DAEMON_UNAVAILABLE', `${program} does not answer`)
  if (status === 0) return (JSON.parse(stdout.toString('utf8')) as Inspected[])[0]
  if (/connect to the Docker daemon|connection refused|permission denied/i.test(stderr.toString('utf8')))
    throw new BobbinError('DAEMON_UNAVAILABLE', `${program} does not answer: ${firstLine(stderr)}`)
  return undefined
}

/** An index names one manifest a platform; what is none names itself. Undefined: no registry has told us of the image. */
async function platformManifest(
  program: string,
  pushed: string,
  { os, architecture, signal }: { readonly os: string; readonly architecture: string; readonly signal: AbortSignal },
): Promise<string | null | undefined> {
  // The engine speaks plain HTTP to this machine by itself, its client does not.
  const insecure = /^(localhost|127(\.\d+){3})[:/]/.test(pushed) ? ['--insecure'] : []
  const args = ['manifest', 'inspect', '--verbose', ...insecure, '--', pushed]
  const { status, stdout } = await runQuietly(program, args, { signal, timeoutMs: ANSWER_MS })
  if (status !== 0) return undefined
  interface Described {
    readonly Descriptor?: { readonly digest?: string; readonly platform?: { os?: string; architecture?: string } }
  }
  try {
    const found = JSON.parse(stdout.toString('utf8')) as Described | Described[]
    const all = Array.isArray(found) ? found : [found]
    const own = all.find(({ Descriptor: d }) => d?.platform?.os === os && d.platform.architecture === architecture)
    return (own ?? (all.length === 1 ? all[0] : undefined))?.Descriptor?.digest ?? null
  } catch {
    return null
  }
}

function repositoryOf(reference: string): string {
  return reference.split('@')[0]!.replace(/:[\w.-]+$/, '')
}

/** `ubuntu` and `docker.io/library/ubuntu` are one. */
function isSameRepository(a: string, b: string): boolean {
  const whole = (name: string) => name.replace(/^docker\.io\//, '').replace(/^library\//, '')
  return whole(a) === whole(b)
}

export function firstLine(bytes: Buffer): string {
  return bytes.toString('utf8').trim().split('\n')[0]!.slice(0, 300)
}
