/** Programs that read mounts: run beside us and never in our way, since a mount may hang. */
import { spawn } from 'node:child_process'

/** Longer than anything takes that works. */
const RUN_MS = 300_000

export interface Ran {
  readonly stdout: string
  /** From the start of the program to its end. */
  readonly seconds: number
}

/** Throws when it fails, or is not done after `timeoutMs`. Output that is not asked for goes nowhere. */
export function runToEnd(
  command: string,
  args: readonly string[],
  options: { readonly env?: NodeJS.ProcessEnv; readonly discard?: boolean; readonly timeoutMs?: number } = {},
): Promise<Ran> {
  const { env, discard = false, timeoutMs = RUN_MS } = options
  return new Promise((resolve, reject) => {
    const start = performance.now()
    const child = spawn(command, args, {
      stdio: ['ignore', discard ? 'ignore' : 'pipe', 'pipe'],
      env: { ...process.env, LC_ALL: 'C', ...env },
    })
    let [stdout, stderr, isLate] = ['', '', false]
    child.stdout?.on('data', chunk => {
      stdout += chunk
    })
    child.stderr!.on('data', chunk => {
      stderr += chunk
    })
    const what = `${command} ${args.join(' ')}`
    const timer = setTimeout(() => {
      isLate = true
      child.kill('SIGKILL')
      // It may hang in the kernel: its end is not waited for.
      reject(new Error(`${what} was not done after ${timeoutMs} ms`))
    }, timeoutMs)
    child.once('error', reject)
    child.once('close', (status, signal) => {
      clearTimeout(timer)
      const seconds = (performance.now() - start) / 1000
      if (status === 0) resolve({ stdout, seconds })
      else if (!isLate) reject(new Error(`${what} ended with ${status ?? signal}: ${stderr}${stdout.slice(-2000)}`))
    })
  })
}
