"""The public API: durable generations, fair scheduling, the chain of stages, and streams that resume.

Only this service knows that the stages exist, and only as stubs. It never imports a model library.
"""
