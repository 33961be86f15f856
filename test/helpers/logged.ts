import { type Test } from 'tap'
import { type SSEOptions } from '../../lib/index.js'
import type { Log } from '../../lib/util/logger.js'
import { serve, type Service } from './app.js'

/** A service whose log lines are kept: those of the package, and all of level error and above. */
export async function logged (t: Test, options: SSEOptions): Promise<{ service: Service, lines: any[], errors: any[] }> {
  const lines: any[] = []
  const errors: any[] = []
  const stream = {
    write (line: string) {
      const entry = JSON.parse(line)
      if (entry.plugin === 'fastify-sse-manager') lines.push(entry)
      if (entry.level >= 50) errors.push(entry)
    }
  }
  return { service: await serve(t, options, { logger: { level: 'info', stream } }), lines, errors }
}

/** A logger for a part of a node, and its lines in order. */
export function recorder (): { log: Log, lines: [level: keyof Log, details: any, message: string][] } {
  const lines: [keyof Log, any, string][] = []
  const at = (level: keyof Log) => (details: object, message: string): void => { lines.push([level, details, message]) }
  return { log: { error: at('error'), warn: at('warn'), info: at('info'), debug: at('debug') }, lines }
}
