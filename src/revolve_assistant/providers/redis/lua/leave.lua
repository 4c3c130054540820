-- ARGV: taker. Everything it holds goes back, and it is forgotten.
call('PEXPIRE', taker_of(ARGV[1]), HOUR)
dismiss(ARGV[1])
return 1
