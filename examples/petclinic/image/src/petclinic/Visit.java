package petclinic;

import java.time.LocalDate;

/** One visit of one animal. */
public record Visit(int id, LocalDate date, String description) {}
