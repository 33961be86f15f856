import { type Test } from 'tap'
import { type SSEOptions } from '../../lib/index.js'
import { serve, type Service } from './app.js'

/** A service whose log lines of level error and above are kept. */
export async function logged (t: Test, options: SSEOptions): Promise<{ service: Service, errors: any[] }> {
  const errors: any[] = []
  const stream = { write (line: string) { const entry = JSON.parse(line); if (entry.level >= 50) errors.push(entry) } }
  return { service: await serve(t, options, { logger: { level: 'info', stream } }), errors }
}
