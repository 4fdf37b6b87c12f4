-- For wrk: requests a new seed each time, or always the same one, and prints the result as one line of JSON.
-- Arguments: method, path, body (SEED stands for the seed), first seed, step (0 repeats), ETag ("" sends none).
local method, path, body, seed, step, headers

function init(args)
  method, path, body, seed, step = args[1], args[2], args[3], tonumber(args[4]), tonumber(args[5])
  headers = {}
  -- With an empty body wrk would send Content-Length: 0, which browsers and curl do not.
  if body == "" then body = nil else headers["Content-Type"] = "application/json" end
  if args[6] ~= "" then headers["If-None-Match"] = args[6] end
end

function request()
  local now = string.format("%d", seed)
  seed = seed + step
  return wrk.format(method, (path:gsub("SEED", now)), headers, body and (body:gsub("SEED", now)))
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    'RESULT {"responses": %d, "us": %d, "bytes": %d, "failed": %d, "p50_us": %d, "p95_us": %d, "p99_us": %d}',
    summary.requests, summary.duration, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
