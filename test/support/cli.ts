/** The command line as people run it: a process of its own, with a cache of its own. */
import { spawn } from 'node:child_process'
import { bobbinPath } from './parts.js'

export interface Outcome {
  readonly status: number | null
  readonly stdout: string
  readonly stderr: string
}

const TIMEOUT_MS = 200_000

/**
 * Without tap's loaders, which it puts into the environment of every child, and which make Node.js slow
 * to start and, once in thousands of starts on a busy machine, end with "IsGraphAsync must be used on an
 * instantiated module".
 */
export const AS_USERS_DO: readonly string[] = ['env', '-u', 'NODE_OPTIONS']

/** Any program; never this process, which a mount that hangs would stop. */
export function runProgram(
  command: string,
  args: readonly string[],
  options: { readonly env?: NodeJS.ProcessEnv; readonly signal?: AbortSignal; readonly timeoutMs?: number } = {},
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: options.env ?? process.env,
      timeout: options.timeoutMs ?? TIMEOUT_MS,
      killSignal: 'SIGKILL',
    })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', chunk => {
      stdout += chunk
    })
    child.stderr.setEncoding('utf8').on('data', chunk => {
      stderr += chunk
    })
    child.once('error', reject)
    child.once('close', status => resolve({ status, stdout, stderr }))
  })
}

export class Bobbin {
  constructor(
    readonly cacheDir: string,
    private readonly env: Readonly<Record<string, string | undefined>> = {},
  ) {}

  /** How it ended, whatever it was. */
  async try(...args: string[]): Promise<Outcome> {
    const env = { ...process.env, AWS_EC2_METADATA_DISABLED: 'true', ...this.env, BOBBIN_CACHE: this.cacheDir }
    const [command, ...before] = AS_USERS_DO
    return runProgram(command!, [...before, process.execPath, bobbinPath, ...args], { env })
  }

  /** stdout; throws unless it ends with 0. */
  async text(...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.try(...args)
    if (status !== 0) throw new Error(`bobbin ${args.join(' ')} ended with ${status}: ${stderr}`)
    return stdout
  }

  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.text(...args, '--json')) as T
  }

  async rows<T>(...args: string[]): Promise<T[]> {
    return (await this.text(...args, '--json'))
      .split('\n')
      .filter(line => line !== '')
      .map(line => JSON.parse(line) as T)
  }
}
