/** Programs that are run for their answers. */
import { spawn } from 'node:child_process'
import { BobbinError, systemCode } from '../../daemon/model/index.js'

export interface Ran {
  readonly status: number | null
  readonly stdout: Buffer
  readonly stderr: Buffer
}

/** Of what nobody could interrupt. Where a signal is given, people end what takes too long: a pull may take hours. */
const TIMEOUT_MS = 600_000

/** However it ends; at a time limit, with a null status. Throws INVALID_ARGUMENT when there is no such program, INTERRUPTED. */
export function runQuietly(
  command: string,
  args: readonly string[],
  {
    env,
    input,
    signal,
    timeoutMs = signal === undefined ? TIMEOUT_MS : undefined,
  }: {
    readonly env?: NodeJS.ProcessEnv
    /** What it reads; nothing without. */
    readonly input?: Buffer | undefined
    readonly signal?: AbortSignal | undefined
    readonly timeoutMs?: number | undefined
  } = {},
): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      ...(timeoutMs !== undefined && { timeout: timeoutMs }),
      ...(env !== undefined && { env }),
      ...(signal !== undefined && { signal }),
    })
    const output: { stdout: Buffer[]; stderr: Buffer[] } = { stdout: [], stderr: [] }
    // It need not read all of it.
    child.stdin?.on('error', () => {}).end(input)
    child.stdout!.on('data', chunk => output.stdout.push(chunk))
    child.stderr!.on('data', chunk => output.stderr.push(chunk))
    child.once('error', error => {
      if (signal?.aborted) return reject(new BobbinError('INTERRUPTED', 'interrupted', { cause: error }))
      if (systemCode(error) !== 'ENOENT') return reject(error)
      reject(new BobbinError('INVALID_ARGUMENT', `no such program: ${command}`, { cause: error }))
    })
    child.once('close', status =>
      resolve({ status, stdout: Buffer.concat(output.stdout), stderr: Buffer.concat(output.stderr) }),
    )
  })
}
