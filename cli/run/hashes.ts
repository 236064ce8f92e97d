import type { RunFacts } from '../record/run-facts.js'

/** The three hashes, `QUILT_HASH` being that of the first mount, and one for each mount: `QUILT_HASH_1`, … */
export function hashVariables({ code, image, mounts, runId }: RunFacts): Record<string, string> {
  return {
    BOBBIN_RUN: runId,
    ...(code !== undefined && { GIT_HASH: code.commit, GIT_TREE: code.tree }),
    ...(image !== undefined && { DOCKER_HASH: image.digest }),
    ...(mounts[0] !== undefined && { QUILT_HASH: mounts[0].topHash }),
    ...Object.fromEntries(mounts.map(({ topHash }, i) => [`QUILT_HASH_${i + 1}`, topHash])),
  }
}
