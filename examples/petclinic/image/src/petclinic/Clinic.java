package petclinic;

import java.time.LocalDate;
import java.util.List;
import java.util.Optional;

/** What the clinic's records can answer and take in. */
public interface Clinic {
    /** Owners whose last name begins so, whatever the case, sorted by name; all of them for the empty text. */
    List<Owner> owners(String lastName);

    Optional<Owner> owner(int id);

    /** Returns the new owner's identifier. */
    int addOwner(Owner owner);

    void updateOwner(Owner owner);

    void addPet(int ownerId, String name, LocalDate birthDate, int typeId);

    void addVisit(int petId, LocalDate date, String description);

    List<PetType> petTypes();

    List<Vet> vets();

    /** Fails when the database does not answer. */
    void ping();
}
