"""`agentfarm chaos`: a scratch farm whose parts are killed, cut off and confused, while an outside world counts effects."""
