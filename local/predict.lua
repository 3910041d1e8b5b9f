-- wrk's script: POST one row; `wrk ... -- MILLISECONDS` waits that long on each connection before a request.
-- Ends with one line of JSON for bench.py.
local pause = 0

function init(args)
  pause = tonumber(args[1]) or 0
  wrk.method = "POST"
  wrk.body = '{"features":[5.1,3.5,1.4,0.2]}'
  wrk.headers["Content-Type"] = "application/json"
end

function delay()
  return pause
end

function done(summary, latency, _)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format('{"requests":%d,"seconds":%f,"failed":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.requests, summary.duration / 1e6, failed,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
