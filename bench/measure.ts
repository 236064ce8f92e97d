/** Whole processes, measured from outside: wall clock, CPU, and the largest memory of all their kind. */
import { execFileSync, spawn } from 'node:child_process'
import { part } from '../test/support/parts.js'

export interface Measured {
  readonly seconds: number
  readonly cpuSeconds: number
  /** Of the largest process among it and its children. */
  readonly peakMiB: number
  readonly stdout: string
}

/** getrusage counts every child that was waited for, which /usr/bin/time does too but is seldom installed. */
const WRAPPER = `
import json, resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
seconds = time.monotonic() - start
use = resource.getrusage(resource.RUSAGE_CHILDREN)
sys.stdout.buffer.write(done.stdout)
print("\\n" + json.dumps([done.returncode, seconds, use.ru_utime + use.ru_stime, use.ru_maxrss / 1024]))
`

/** Runs a command; throws when it fails. */
export async function measure(command: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<Measured> {
  const child = spawn(part('quilt3'), ['-c', WRAPPER, ...command], { stdio: ['ignore', 'pipe', 'inherit'], env })
  let output = ''
  for await (const chunk of child.stdout) output += chunk
  const at = output.trimEnd().lastIndexOf('\n')
  const [status, seconds, cpuSeconds, peakMiB] = JSON.parse(output.slice(at)) as [number, number, number, number]
  if (status !== 0) throw new Error(`${command.join(' ')} ended with ${status}`)
  return { seconds, cpuSeconds, peakMiB, stdout: output.slice(0, at).trim() }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** The machine, for the head of a result. */
export function machine(): string[] {
  const run = (command: string, ...args: string[]) => execFileSync(command, args, { encoding: 'utf8' }).trim()
  const cpu = /model name\s*:\s*(.*)/.exec(run('cat', '/proc/cpuinfo'))?.[1] ?? 'unknown processor'
  const memory = Math.round(Number(/MemTotal:\s*(\d+)/.exec(run('cat', '/proc/meminfo'))![1]) / 2 ** 20)
  return [
    `machine: ${run('nproc')} cores of ${cpu}, ${memory} GiB`,
    `kernel: ${run('uname', '-sr')}`,
    `node: ${process.version}`,
  ]
}
