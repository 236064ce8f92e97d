/** The status as Prometheus reads it (text format 0.0.4). */
import type { StatusFacts } from './schema.js'

export const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

export function formatMetrics({ daemon, mounts, cache, fetch, loader }: StatusFacts): string {
  const metrics: readonly (readonly [name: string, type: 'gauge' | 'counter', help: string, value: number])[] = [
    ['start_time_seconds', 'gauge', 'When the daemon started, unix time', Date.parse(daemon.startedAt) / 1000],
    ['mounts', 'gauge', 'Mounts', mounts.length],
    ['cache_bytes', 'gauge', 'Objects in the store', cache.bytes],
    ['cache_packages_bytes', 'gauge', 'Compiled packages', cache.packagesBytes],
    ['cache_plans_bytes', 'gauge', 'Plans of loaders', cache.plansBytes],
    ['cache_logs_bytes', 'gauge', 'Logs', cache.logsBytes],
    ['cache_other_bytes', 'gauge', 'Journal, notes, uploads and files under way', cache.otherBytes],
    ['cache_limit_bytes', 'gauge', 'Quota of the store', cache.limitBytes],
    ['cache_pinned_bytes', 'gauge', 'Objects that are open', cache.pinnedBytes],
    ['cache_objects', 'gauge', 'Objects in the store', cache.objects],
    ['cache_evictions_total', 'counter', 'Objects evicted', cache.evictions],
    ['cache_lost_total', 'counter', 'Objects given up after the disk lost what was written to it', cache.lost],
    ['fetch_objects_total', 'counter', 'Objects fetched, checked and stored', fetch.objects],
    ['fetch_bytes_total', 'counter', 'Bytes of these', fetch.bytes],
    ['fetch_hits_total', 'counter', 'Opens that needed no fetch', fetch.hits],
    ['fetch_refetches_total', 'counter', 'Second tries after wrong bytes', fetch.refetches],
    ['fetch_refused_total', 'counter', 'Objects given up because their bytes are wrong', fetch.refused],
    ['fetch_errors_total', 'counter', 'Fetches that failed for another reason', fetch.errors],
    ['fetch_in_flight', 'gauge', 'Fetches under way', fetch.inFlight],
    ['fetch_queued', 'gauge', 'Fetches that wait for their turn', fetch.queued],
    ['leases', 'gauge', 'Leases that loaders hold', loader?.owners.reduce((sum, { leases }) => sum + leases, 0) ?? 0],
    ['leased_bytes', 'gauge', 'Objects in these, counted for each', loader?.leasedBytes ?? 0],
  ]
  return metrics
    .map(
      ([name, type, help, value]) =>
        `# HELP bobbin_${name} ${help}.\n# TYPE bobbin_${name} ${type}\nbobbin_${name} ${value}\n`,
    )
    .join('')
}
