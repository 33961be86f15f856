#!/usr/bin/env node
import { runProcess } from '../dist/esm/lib/cli/process.js'

await runProcess()
