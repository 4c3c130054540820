-- KEYS: channels. ARGV: incarnation of those that are made, cap, ms to live from now on.
local wanted, life = tonumber(ARGV[2]), ARGV[3]
for _, key in ipairs(KEYS) do
  local incarnation, base, cap = head_of(key)
  if not incarnation then
    call('SET', key, ARGV[1] .. pack('>I6I6', 0, wanted), 'PX', life)
  else
    call('PEXPIRE', key, life)
    local total = call('STRLEN', key) - HEAD
    if wanted ~= cap then
      call('SETRANGE', key, 14, pack('>I6', wanted))
      if total > wanted then trim(key, incarnation, base, wanted, total) end
    end
    if total < 16384 then -- appending leaves room for as much again, which most logs that are kept do not need any more
      call('SET', key, call('GET', key), 'KEEPTTL')
    end
  end
end
return true
