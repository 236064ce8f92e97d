/**
 * Tests that cannot run here, told to tap as skips with their reason: `.ci/run` fails on a skip of what its machine can
 * run. Pass a reason that is known before the test as `{ skip }`. What only the test itself finds out goes through here.
 */
import type { Test } from 'tap'

/** Skips the test. Call it before the first assertion, then return. */
export function skipTest(t: Test, reason: string): void {
  t.plan(0, reason)
}

/** Skips one part of a test whose other parts run. */
export function skipPart(t: Test, part: string, reason: string): void {
  t.pass(part, { skip: reason })
}
