-- What all scripts of the queue share; queue.py tells the layout of the keys.
-- KEYS[1] is the prefix of every key. Times are milliseconds of the server's clock. A script is one step: nobody sees
-- a half of it. The first write of those that must work when memory is full is one that Redis does not count as
-- growing, since it is only the first that it refuses.

if redis.replicate_commands then redis.replicate_commands() end -- Redis 6: the clock is read before a write
local call, pack, read = redis.call, cmsgpack.pack, cmsgpack.unpack
local base = KEYS[1]
local clock = call('TIME')
local now = tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000

local HEADS, BODIES, STATE = base .. ':heads', base .. ':bodies', base .. ':state'
local UNIQUE, QUEUES, TAKERS, RULES = base .. ':unique', base .. ':queues', base .. ':takers', base .. ':rules'
local BURIED, BURIED_HEADS, BURIED_BODIES = base .. ':buried', base .. ':buried.heads', base .. ':buried.bodies'
local BURIED_SIZE = base .. ':buried.size'
local PLANS, SPECS, FIRED = base .. ':plans', base .. ':plans.specs', base .. ':plans.fired'

local HOUR = 3600000
local SOME = 500       -- tasks that are moved in one step for other reasons than that somebody asks for them
local GIVEN = 4194304  -- bytes after which an answer is full
local TOLD = 262144    -- bytes that go with a message; a larger body is fetched on another connection, since one that
                       -- listens is cut off when 32 MB wait for it (client-output-buffer-limit pubsub)
local GONE = 3000      -- since when a taker's connection must be gone until it counts as dead; see also take.lua
local LOOK = 2000      -- between two looks for such
local MOST_BURIED = 268435456 -- bytes of all bodies that are kept of buried tasks
local BAND = 281474976710656 -- 2^48: the scores of a priority; within it, ticks of 10 us since 2020

-- fields of a head
local SCORE, QUEUE, NAME, KEY, SIZE, DELIVERIES, TOKEN = 1, 2, 3, 4, 5, 6, 7

local function ready_of(queue) return base .. ':ready:' .. queue end
local function delayed_of(queue) return base .. ':delayed:' .. queue end
local function leased_of(queue) return base .. ':leased:' .. queue end
local function waiting_of(queue) return base .. ':waiting:' .. queue end
local function names_of(queue) return base .. ':parking:' .. queue end
local function parked_of(queue, name) return base .. ':parked:' .. #queue .. ':' .. queue .. ':' .. name end
local function queues_of(name) return base .. ':parks:' .. name end
local function running_of(name) return base .. ':running:' .. name end
local function started_of(name) return base .. ':started:' .. name end
local function taker_of(taker) return base .. ':taker:' .. taker end
local function ear_of(taker) return base .. ':ear:' .. taker end
local function buried_of(queue) return base .. ':buried:' .. queue end

local function ticks() return math.floor((now - 1577836800000) * 100) end

-- The next stamp: later than all before, the clock where that is later still.
local stamp
local function next_stamp()
  if not stamp then stamp = tonumber(call('HGET', STATE, 'stamp') or 0) end
  stamp = math.max(stamp + 1, ticks())
  return stamp
end
local function keep_stamp()
  if stamp then
    call('HSET', STATE, 'stamp', string.format('%.0f', stamp))
    call('PEXPIRE', STATE, HOUR)
  end
end

-- A taker has spoken, which is known for an hour. False: it is not known.
local function spoke(taker)
  if call('PEXPIRE', taker_of(taker), HOUR) == 0 then return false end
  call('ZADD', TAKERS, now, taker)
  call('PEXPIRE', TAKERS, HOUR)
  return true
end

local function alive(taker) return call('PUBSUB', 'NUMSUB', ear_of(taker))[2] > 0 end

-- ---- rules

local rules -- name -> {paused, concurrency, rate, per}; false: there are none
local function load_rules()
  if rules == nil then
    rules = false
    if call('EXISTS', RULES) == 1 then
      rules = {}
      local found = call('HGETALL', RULES)
      for i = 1, #found, 2 do
        local paused, concurrency, rate, per = string.match(found[i + 1], '^(%S+) (%S+) (%S+) (%S+)$')
        rules[found[i]] = {
          paused = paused == '1', concurrency = tonumber(concurrency), rate = tonumber(rate),
          per = tonumber(per) * 1000,
        }
      end
    end
  end
  return rules
end

local rooms = {} -- name -> how many more may be taken now
local function room_of(name)
  local room = rooms[name]
  if room then return room end
  local rule = rules and rules[name]
  room = math.huge
  if rule then
    if rule.paused then
      room = 0
    else
      if rule.concurrency then
        local running = running_of(name)
        call('ZREMRANGEBYSCORE', running, '-inf', now)
        room = rule.concurrency - call('ZCARD', running)
      end
      if rule.rate then
        local started = started_of(name)
        call('ZREMRANGEBYSCORE', started, '-inf', now - rule.per)
        room = math.min(room, rule.rate - call('ZCARD', started))
      end
    end
  end
  rooms[name] = room
  return room
end

-- When a blocked name may have room again by itself; nil: not before something happens that wakes a taker.
local function room_due(name)
  local rule = rules and rules[name]
  if not rule or rule.paused then return nil end
  local due
  if rule.rate and call('ZCARD', started_of(name)) >= rule.rate then
    due = tonumber(call('ZRANGE', started_of(name), 0, 0, 'WITHSCORES')[2]) + rule.per
  end
  if rule.concurrency and call('ZCARD', running_of(name)) >= rule.concurrency then
    local first = tonumber(call('ZRANGE', running_of(name), 0, 0, 'WITHSCORES')[2] or now)
    due = math.max(due or 0, first)
  end
  return due or now
end

local function ruled(name, id, token, expiry)
  local rule = rules and rules[name]
  if not rule then return end
  rooms[name] = room_of(name) - 1
  if rule.concurrency then
    call('ZADD', running_of(name), expiry, id)
    call('PEXPIRE', running_of(name), math.ceil(expiry - now) + HOUR)
  end
  if rule.rate then
    call('ZADD', started_of(name), now, token .. ':' .. id)
    call('PEXPIRE', started_of(name), math.ceil(rule.per) + 1000)
  end
end

-- ---- where tasks stand

local function park(queue, name, score, id)
  call('ZADD', parked_of(queue, name), score, id)
  call('SADD', names_of(queue), name)
  call('SADD', queues_of(name), queue)
end

local function unparked(queue, name)
  if call('EXISTS', parked_of(queue, name)) == 0 then
    call('SREM', names_of(queue), name)
    call('SREM', queues_of(name), queue)
  end
end

-- Bring back what waited aside, as far as the rules allow, at most `limit` of each name. True: some came.
local function unpark(queue, limit)
  local names, some = call('SMEMBERS', names_of(queue)), false
  for _, name in ipairs(names) do
    local room = math.min(room_of(name), limit)
    if room > 0 then
      local parked = parked_of(queue, name)
      local first = call('ZPOPMIN', parked, room)
      for i = 1, #first, 2 do call('ZADD', ready_of(queue), first[i + 1], first[i]) end
      unparked(queue, name)
      some = some or #first > 0
    end
  end
  return some
end

-- Take a task that is not leased from wherever it stands.
local function pick(head, id)
  local queue = head[QUEUE]
  if call('ZREM', ready_of(queue), id) == 1 or call('ZREM', delayed_of(queue), id) == 1 then return true end
  if call('ZREM', parked_of(queue, head[NAME]), id) == 1 then
    unparked(queue, head[NAME])
    return true
  end
  return false
end

local function free_key(head, id)
  local key = head[KEY]
  if key ~= '' and call('HGET', UNIQUE, key) == id then call('HDEL', UNIQUE, key) end
end

-- Remove a task unless somebody has it; its head, and its body if that is wanted; nil: nobody knows it, or it is taken.
local function remove(id, wanted)
  local record = call('HGET', HEADS, id)
  if not record then return nil end
  local head = read(record)
  local ends = call('ZSCORE', leased_of(head[QUEUE]), id)
  if ends and tonumber(ends) > now then return nil end
  local body = wanted and call('HGET', BODIES, id) or ''
  if ends then call('ZREM', leased_of(head[QUEUE]), id) else pick(head, id) end
  call('HDEL', HEADS, id)
  call('HDEL', BODIES, id)
  free_key(head, id)
  return head, body
end

-- Ended leases and delays of a queue become ready. True: some did.
local function promote(queue)
  local ready, some = ready_of(queue), false
  for _, from in ipairs({delayed_of(queue), leased_of(queue)}) do
    local due = call('ZRANGEBYSCORE', from, '-inf', now, 'LIMIT', 0, SOME)
    if #due > 0 then
      some = true
      call('ZREM', from, unpack(due))
      local heads = call('HMGET', HEADS, unpack(due))
      local add = {}
      for i, id in ipairs(due) do
        if heads[i] then
          add[#add + 1] = read(heads[i])[SCORE]
          add[#add + 1] = id
        end
      end
      if #add > 0 then call('ZADD', ready, unpack(add)) end
    end
  end
  return some
end

-- No lease ends before that: nobody could extend his while the server was away.
local function spare(moment)
  load_rules()
  for _, queue in ipairs(call('SMEMBERS', QUEUES)) do
    local leased = leased_of(queue)
    while true do
      local ids = call('ZRANGEBYSCORE', leased, '-inf', string.format('(%.0f', moment), 'LIMIT', 0, SOME)
      if #ids == 0 then break end
      local heads = call('HMGET', HEADS, unpack(ids))
      for i, id in ipairs(ids) do
        call('ZADD', leased, moment, id)
        if rules and heads[i] then call('ZADD', running_of(read(heads[i])[NAME]), 'XX', moment, id) end
      end
    end
  end
end

-- ---- taking

-- Fill in the bodies of a list of leases that starts behind `at`; those of the large ones stay false.
local function add_bodies(out, at, ids, small)
  if #small == 0 then return end
  local bodies = call('HMGET', BODIES, unpack(small))
  local next = 1
  for i, id in ipairs(ids) do
    if small[next] == id then
      out[at + 4 * i] = bodies[next] or ''
      next = next + 1
    end
  end
end

-- Leases for a taker: a flat list of id, queue, deliveries, body; nil: there is nothing. Its number is the taker's.
local function take(taker, queues, limit, lease, most)
  load_rules()
  local number = tonumber(call('HGET', taker_of(taker), 'number') or 0) + 1
  local token = taker .. ':' .. string.format('%d', number)
  local expiry = now + lease
  local left, bytes = limit, 0
  local ids, small, out = {}, {}, {}
  for _, queue in ipairs(queues) do
    if left <= 0 or bytes >= most then break end
    local ready, aside = ready_of(queue), 0
    if rules or call('EXISTS', names_of(queue)) == 1 then unpark(queue, left) end
    local heads, leased = {}, {}
    while left > 0 and bytes < most and aside < SOME do
      local popped = call('ZPOPMIN', ready, math.min(left, SOME))
      if #popped == 0 then break end
      local some = {}
      for i = 1, #popped, 2 do some[#some + 1] = popped[i] end
      local records = call('HMGET', HEADS, unpack(some))
      for i, id in ipairs(some) do
        local head = records[i] and read(records[i])
        if head then
          if bytes >= most or (bytes > 0 and bytes + head[SIZE] > most) then
            call('ZADD', ready, popped[2 * i], id)
            bytes = most
          elseif rules and room_of(head[NAME]) <= 0 then
            park(queue, head[NAME], popped[2 * i], id)
            aside = aside + 1
          else
            head[DELIVERIES] = head[DELIVERIES] + 1
            head[TOKEN] = token
            heads[#heads + 1] = id
            heads[#heads + 1] = pack(head)
            leased[#leased + 1] = expiry
            leased[#leased + 1] = id
            ids[#ids + 1] = id
            local at = #out
            out[at + 1], out[at + 2], out[at + 3], out[at + 4] = id, queue, head[DELIVERIES], false
            if head[SIZE] <= TOLD then small[#small + 1] = id end
            bytes = bytes + head[SIZE]
            left = left - 1
            if rules then ruled(head[NAME], id, token, expiry) end
          end
        end
      end
    end
    if #heads > 0 then
      call('HSET', HEADS, unpack(heads))
      call('ZADD', leased_of(queue), unpack(leased))
    end
  end
  if #ids == 0 then return nil end
  add_bodies(out, 0, ids, small)
  call('HSET', taker_of(taker), 'number', number, 'given', pack(ids))
  return out, number
end

local function told(number, out)
  local sizes = {}
  for i = 1, #out do
    sizes[i] = out[i] and #tostring(out[i]) or -1
    out[i] = out[i] or ''
  end
  return number .. ' ' .. table.concat(sizes, ' ') .. '\n' .. table.concat(out)
end

-- Hand what is ready in a queue to those who wait for it.
local function serve(queue)
  local waiting = waiting_of(queue)
  while call('EXISTS', waiting) == 1 do
    if call('EXISTS', ready_of(queue)) == 0 then
      load_rules()
      if call('EXISTS', names_of(queue)) == 0 or not unpark(queue, 1) then return end
    end
    local first = call('ZPOPMIN', waiting)
    local taker = first[1]
    local waits = taker and call('HGET', taker_of(taker), 'waits')
    if waits and alive(taker) then
      waits = read(waits)
      local out, number = take(taker, waits[3], waits[1], waits[2], TOLD)
      if not out then
        call('ZADD', waiting, first[2], taker)
        return
      end
      call('HDEL', taker_of(taker), 'waits')
      call('PUBLISH', ear_of(taker), told(number, out))
    end
  end
end

-- Have somebody who waits for a queue look again.
local function rouse(queue)
  local first = call('ZRANGE', waiting_of(queue), 0, 0)
  if first[1] then call('PUBLISH', ear_of(first[1]), '') end
end

local function rouse_parks(name)
  for _, queue in ipairs(call('SMEMBERS', queues_of(name))) do serve(queue) end
end

-- ---- giving

local function unbury(id)
  local found = call('HGET', BURIED_HEADS, id)
  if not found then return nil end
  local head = read(found)
  call('HDEL', BURIED_HEADS, id)
  call('HDEL', BURIED_BODIES, id)
  call('ZREM', BURIED, id)
  call('ZREM', buried_of(head[1]), id)
  call('DECRBY', BURIED_SIZE, head[6])
  return head
end

-- Forget those that were buried too long ago, and the first of too many or too large ones.
local function unbury_old(keep, cap)
  for _, id in ipairs(call('ZRANGEBYSCORE', BURIED, '-inf', now - keep, 'LIMIT', 0, SOME)) do unbury(id) end
  local excess = math.min(call('ZCARD', BURIED) - cap, SOME)
  if excess > 0 then
    for _, id in ipairs(call('ZRANGE', BURIED, 0, excess - 1)) do unbury(id) end
  end
  while tonumber(call('GET', BURIED_SIZE) or 0) > MOST_BURIED do
    local first = call('ZRANGE', BURIED, 0, 0)[1]
    if not first then break end
    unbury(first)
  end
end

-- Add what is told of a buried task, given its head.
local function tell_buried(out, id, body, head)
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5] = id, body, head[1], head[2], head[3]
  out[n + 6], out[n + 7] = head[4], string.format('%.3f', head[5])
end

-- The same of one that is not.
local function tell(out, id, body, head)
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5] = id, body, head[QUEUE], head[DELIVERIES], ''
  out[n + 6], out[n + 7] = head[NAME], '0'
end

-- Enter `count` tasks whose ids and bodies are ARGV[at], ARGV[at + 1], …; whose key is held is added to `refused`.
local function enter(queue, priority, delay, name, key, at, count, refused)
  local ids = {}
  for i = 1, count do ids[i] = ARGV[at + 2 * i - 2] end
  local held = call('HMGET', HEADS, unpack(ids))
  local band = (9 - priority) * BAND + math.floor(delay * 100)
  local heads, bodies, scores, met = {}, {}, {}, {}
  local due = now + delay
  for i = 1, count do
    local id, body = ids[i], ARGV[at + 2 * i - 1]
    local new = not held[i] and not met[id]
    if new and key ~= '' then
      local holder = call('HGET', UNIQUE, key)
      if holder and holder ~= id and call('HEXISTS', HEADS, holder) == 1 then
        refused[#refused + 1] = id
        refused[#refused + 1] = holder
        new = false
      else
        call('HSET', UNIQUE, key, id)
      end
    end
    if new then
      met[id] = true
      local score, n = band + next_stamp(), #heads
      heads[n + 1], heads[n + 2] = id, pack({score, queue, name, key, #body, 0, ''})
      bodies[n + 1], bodies[n + 2] = id, body
      scores[n + 1], scores[n + 2] = delay > 0 and due or score, id
    end
  end
  if #heads == 0 then return end
  call('HSET', HEADS, unpack(heads))
  call('HSET', BODIES, unpack(bodies))
  if call('EXISTS', BURIED) == 1 then
    for i = 1, #heads, 2 do unbury(heads[i]) end
  end
  call('SADD', QUEUES, queue)
  if delay > 0 then
    local delayed = delayed_of(queue)
    local first = tonumber(call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2] or math.huge)
    call('ZADD', delayed, unpack(scores))
    if due < first then rouse(queue) end
  else
    call('ZADD', ready_of(queue), unpack(scores))
    serve(queue)
  end
end

-- Give everything back that a taker holds, and forget it.
local function dismiss(taker)
  local mine = taker .. ':'
  call('ZREM', TAKERS, taker)
  call('UNLINK', taker_of(taker))
  load_rules()
  for _, queue in ipairs(call('SMEMBERS', QUEUES)) do
    local leased, some = leased_of(queue), false
    local ids = call('ZRANGE', leased, 0, -1)
    for from = 1, #ids, SOME do
      local part = {unpack(ids, from, math.min(#ids, from + SOME - 1))}
      local heads = call('HMGET', HEADS, unpack(part))
      for i, id in ipairs(part) do
        local head = heads[i] and read(heads[i])
        if head and string.sub(head[TOKEN], 1, #mine) == mine then
          call('ZREM', leased, id)
          call('ZADD', ready_of(queue), head[SCORE], id)
          if rules then call('ZREM', running_of(head[NAME]), id) end
          some = true
        end
      end
    end
    rooms = {}
    if some then serve(queue) end
  end
end
