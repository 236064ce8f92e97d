/**
 * Tests that cannot run here, told to tap as skips with their reason: `.ci/run` fails on a skip of what its machine can
 * run. Pass a reason that is known before the test as `{ skip }`. What only the test itself finds out goes through here.
 */
import type { TAP, Test } from 'tap'
import { cannotMount } from './can-mount.js'

/** Skips the test. Call it before the first assertion, then return. */
export function skipTest(t: Test, reason: string): void {
  t.plan(0, reason)
}

/** Skips one part of a test whose other parts run. */
export function skipPart(t: Test, part: string, reason: string): void {
  t.pass(part, { skip: reason })
}

/** Ends the process of a test file as a skip where nothing can be mounted. Call it before the first test. */
export function endUnlessMounts(t: TAP): void {
  const reason = cannotMount()
  if (reason === false) return
  t.plan(0, reason)
  process.exit()
}
