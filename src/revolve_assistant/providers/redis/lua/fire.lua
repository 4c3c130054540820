-- ARGV: key of the plan, its due, its next due, number of this request, and what submit takes as one group (or nothing).
-- Returns 1: this request has done it. The same request again changes nothing.
local done = call('HGET', FIRED, ARGV[1])
if done == ARGV[4] then return 1 end
local due = call('ZSCORE', PLANS, ARGV[1])
if not due or tonumber(due) ~= tonumber(ARGV[2]) then return 0 end
call('HSET', FIRED, ARGV[1], ARGV[4])
call('ZADD', PLANS, ARGV[3], ARGV[1])
if ARGV[5] then
  enter(ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9], 11, 1, {})
  keep_stamp()
end
return 1
