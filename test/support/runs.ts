/** Runs of commands on packages, in a state folder of a test's own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { LedgerRow } from '../../cli/record/ledger-row.js'
import type { RunFacts } from '../../cli/record/run-facts.js'
import { AS_USERS_DO, Bobbin, type Outcome, runProgram } from './cli.js'
import { bobbinPath } from './parts.js'

/** What `bobbin run --json` says. */
export interface RunAnswer {
  readonly runId: string
  readonly exitCode: number
  readonly record: string
  readonly topHashes: readonly string[]
  readonly imageDigest: string | null
  readonly gitCommit: string | null
  readonly gitTree: string | null
  readonly outputs: readonly { readonly path: string; readonly sha256: string }[]
}

/** What a bare process of a record has to be allowed, and one whose code lies in a folder that is not ours. */
export const ALLOW_HOST = ['--allow-host'] as const
export const ALLOW_CODE = ['--allow-code'] as const

export class Runs {
  readonly cli: Bobbin
  readonly state: string
  readonly code: string
  readonly #env: Readonly<Record<string, string>>

  constructor(
    readonly folder: string,
    env: Readonly<Record<string, string>> = {},
  ) {
    this.state = join(folder, 'state')
    this.code = join(folder, 'code')
    this.#env = { BOBBIN_STATE: this.state, BOBBIN_FREE_FLOOR: '0', ...env }
    this.cli = new Bobbin(join(folder, 'cache'), this.#env)
  }

  /** A repository with one commit. */
  async commit(files: Readonly<Record<string, string>>): Promise<string> {
    mkdirSync(this.code, { recursive: true })
    for (const [name, text] of Object.entries(files)) writeFileSync(join(this.code, name), text)
    if ((await this.git('rev-parse', '--git-dir')).status !== 0) await this.git('init', '--quiet')
    await this.git('add', '--all')
    await this.git('-c', 'user.name=Test', '-c', 'user.email=test@test.invalid', 'commit', '--quiet', '-m', 'code')
    return (await this.git('rev-parse', 'HEAD')).stdout.trim()
  }

  git(...args: string[]): Promise<Outcome> {
    return runProgram('git', ['-C', this.code, ...args])
  }

  /** `bobbin` from within the code's folder. */
  bobbin(...args: string[]): Promise<Outcome> {
    const [command, ...before] = AS_USERS_DO
    const line = ['-C', this.code, command!, ...before, process.execPath, bobbinPath, ...args]
    return runProgram('env', line, { env: this.#environment() })
  }

  /** Throws unless it made a record. */
  async run(...args: string[]): Promise<RunAnswer> {
    const { stdout, stderr, status } = await this.bobbin('run', '--json', ...args)
    if (stdout === '') throw new Error(`bobbin run ended with ${status}: ${stderr}`)
    return JSON.parse(stdout) as RunAnswer
  }

  /** One that is still on its way. */
  start(...args: string[]) {
    return this.#spawn('run', '--json', ...args)
  }

  /** One that shows people what its command says. */
  startShown(...args: string[]) {
    return this.#spawn('run', ...args)
  }

  #spawn(...args: string[]) {
    const [command, ...before] = AS_USERS_DO
    return spawn('env', ['-C', this.code, command!, ...before, process.execPath, bobbinPath, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: this.#environment(),
    })
  }

  /** Of the run that was started last, as far as it came. */
  latestFacts(): RunFacts | undefined {
    const folder = join(this.state, 'runs')
    try {
      return factsOf({ record: join(folder, readdirSync(folder).sort().at(-1)!) })
    } catch {
      return undefined
    }
  }

  #environment(): NodeJS.ProcessEnv {
    return { ...process.env, AWS_EC2_METADATA_DISABLED: 'true', ...this.#env, BOBBIN_CACHE: this.cli.cacheDir }
  }
}

/** What a process that is still on its way has said so far, and what it ends with. */
export interface Started {
  readonly process: ChildProcess
  stdout(): string
  stderr(): string
  readonly ended: Promise<number | NodeJS.Signals | null>
}

export function started(child: ChildProcess): Started {
  let [stdout, stderr] = ['', '']
  child.stdout!.setEncoding('utf8').on('data', chunk => {
    stdout += chunk
  })
  child.stderr!.setEncoding('utf8').on('data', chunk => {
    stderr += chunk
  })
  const ended = new Promise<number | NodeJS.Signals | null>(resolve =>
    child.once('close', (code, signal) => resolve(code ?? signal)),
  )
  return { process: child, stdout: () => stdout, stderr: () => stderr, ended }
}

export function readsOf({ record }: { readonly record: string }): LedgerRow[] {
  return readFileSync(join(record, 'reads.jsonl'), 'utf8')
    .split('\n')
    .filter(line => line !== '')
    .map(line => JSON.parse(line) as LedgerRow)
}

export function factsOf({ record }: { readonly record: string }): RunFacts {
  return JSON.parse(readFileSync(join(record, 'run.json'), 'utf8')) as RunFacts
}

export function statementOf({ record }: { readonly record: string }, name = 'statement.json') {
  return JSON.parse(readFileSync(join(record, name), 'utf8'))
}

/** How the command ended, and what went wrong around it. */
export function exitOf(run: { readonly record: string }) {
  const { byproducts } = statementOf(run).predicate.runDetails
  const { content } = byproducts.find((one: { name: string }) => one.name === 'exit')
  return JSON.parse(Buffer.from(content, 'base64').toString())
}

/** Does the record say that its ledger lacks nothing? */
export function isComplete(run: { readonly record: string }): boolean {
  const { resolvedDependencies } = statementOf(run).predicate.buildDefinition
  return resolvedDependencies.find((one: { name: string }) => one.name === 'reads').annotations.complete
}
