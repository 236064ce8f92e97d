/** Python scripts of test/clients, with the client from this checkout: each line that says `ok` is a test. */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { AS_USERS_DO } from './cli.js'
import { part, repository } from './parts.js'

export interface ScriptOptions {
  /** What the script reads from its argument. */
  readonly options?: Readonly<Record<string, unknown>>
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Default: the one with torch and the others. `system`: Debian's, which has nothing. */
  readonly python?: 'loader' | 'system'
  readonly timeoutMs?: number
  /** Of what the script says that is no check. */
  onFacts?(facts: Readonly<Record<string, unknown>>): void
}

const TIMEOUT_MS = 900_000

/** Resolves when the script has ended; it has to end well, and to have checked something. */
export function runScript(t: Test, name: string, options: ScriptOptions = {}): Promise<void> {
  const python = options.python === 'system' ? 'python3' : part('loader')
  const path = join(repository, 'test/clients', name)
  if (!existsSync(path)) throw new Error(`there is no ${path}`)
  const [command, ...before] = AS_USERS_DO
  const args = [...before, python, '-B', path, JSON.stringify(options.options ?? {})]
  return new Promise((resolve, reject) => {
    const child = spawn(command!, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: options.timeoutMs ?? TIMEOUT_MS,
      killSignal: 'SIGKILL',
      env: { ...process.env, ...options.env, PYTHONPATH: join(repository, 'loader/python/src'), PYTHONUNBUFFERED: '1' },
    })
    let [checks, line, stderr] = [0, '', '']
    child.stdout.setEncoding('utf8').on('data', chunk => {
      const lines = (line + chunk).split('\n')
      line = lines.pop()!
      for (const text of lines) {
        const said = parse(text)
        if (said === undefined) t.comment(text)
        else if ('ok' in said) {
          checks++
          t.ok(said.ok, `${said.name}${said.ok ? '' : `: ${said.detail}`}`)
        } else options.onFacts?.(said)
      }
    })
    child.stderr.setEncoding('utf8').on('data', chunk => {
      stderr = (stderr + chunk).slice(-8000)
    })
    child.once('error', reject)
    child.once('close', (status, signal) => {
      if (status !== 0) t.fail(`${name} ended with ${status ?? signal}: ${stderr}`)
      else t.ok(checks > 0, `${name} has checked something`)
      resolve()
    })
  })
}

function parse(text: string): Record<string, unknown> | undefined {
  if (!text.startsWith('{')) return undefined
  try {
    return JSON.parse(text) as Record<string, unknown>
  } catch {
    return undefined
  }
}
