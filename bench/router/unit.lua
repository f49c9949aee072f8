-- A wrk script: every request names another unit, so that every exposure is a new one.
-- Its arguments are what stands before the unit, what stands after it, and the first unit.
local head, tail, unit

function init(arguments)
  head, tail, unit = arguments[1], arguments[2], tonumber(arguments[3])
end

function request()
  unit = unit + 1
  return head .. string.format("%09d", unit) .. tail
end

function done(summary)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "lost": %d, "refused": %d}\n',
    summary.requests, summary.duration, lost, errors.status
  ))
end
